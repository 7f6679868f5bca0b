"""Words that stand in and around answers, in each language of `phrases.NAMES`. Units of measure have `units.py`."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

BY_LANGUAGE: dict[str, str] = {
    "en": """
        and: and, &, as well as; or: or; option: option, choice, letter, case; answer: answer, ans,
        final answer, result, solution; is: the answer is, answer is, the final answer is, the correct
        answer is""",
    "zh": """
        and: 和, 与, 與, 及, 以及, 还有, 並且, 并且; or: 或, 或者; option: 选项, 選項, 选择, 選擇, 选,
        選, 项; answer: 答案, 答, 结果, 最终答案, 最終答案; is: 答案是, 答案为, 答案為, 答案选,
        答案應為, 最终答案是""",
    "es": """
        and: y, e; or: o, u; option: opción, opcion, alternativa, letra, inciso; answer: respuesta,
        solución, respuesta final; is: la respuesta es, respuesta es""",
    "fr": """
        and: et; or: ou; option: option, choix, proposition, lettre; answer: réponse, solution, réponse
        finale; is: la réponse est, réponse est""",
    "de": """
        and: und, sowie; or: oder; option: option, auswahl, möglichkeit, antwortmöglichkeit, buchstabe,
        wahl; answer: antwort, lösung, ergebnis, endergebnis; is: die antwort ist, antwort ist, die
        lösung ist""",
    "ja": """
        and: と, および, 及び, かつ; or: または, 又は, あるいは, もしくは; option: 選択肢, 選択, 選択枝,
        記号; answer: 答え, 答, 解答, 回答, 最終的な答え; is: 答えは, 正解は, 解答は""",
    "ru": """
        and: и; or: или, либо; option: вариант, вариант ответа, опция, буква, пункт, выбор; answer:
        ответ, решение, результат; is: ответ это""",
    "it": """
        and: e, ed; or: o, oppure; option: opzione, scelta, alternativa, lettera; answer: risposta,
        soluzione, risposta finale; is: la risposta è, risposta è""",
    "pt": """
        and: e; or: ou; option: opção, alternativa, letra, escolha, opçao; answer: resposta, solução,
        resposta final; is: a resposta é, resposta é""",
    "ko": """
        and: 와, 과, 및, 그리고, 하고; or: 또는, 혹은, 이나; option: 선택지, 보기, 옵션, 선택, 번;
        answer: 정답, 답, 답안, 해답, 최종 답; is: 정답은, 답은""",
    "ar": """
        and: و; or: أو, او; option: الخيار, خيار, الاختيار, اختيار, الحرف, حرف; answer: الإجابة, الجواب,
        إجابة, جواب, الحل, الإجابة النهائية; is: الإجابة هي, الجواب هو""",
    "th": """
        and: และ, กับ; or: หรือ; option: ตัวเลือก, ข้อ, ตัวเลือกที่; answer: คำตอบ, ตอบ, คำตอบสุดท้าย;
        is: คำตอบคือ""",
    "vi": """
        and: và; or: hoặc, hay; option: phương án, lựa chọn, tùy chọn, câu, chọn, đáp án; answer: đáp
        án, đáp số, trả lời, câu trả lời, kết quả; is: đáp án là, câu trả lời là""",
    "id": """
        and: dan, serta; or: atau; option: pilihan, opsi, huruf; answer: jawaban, hasil, jawaban akhir;
        is: jawabannya adalah, jawaban adalah""",
    "he": """
        and: ו, ו-, וגם; or: או; option: אפשרות, האפשרות, סעיף, הסעיף, בחירה, אות; answer: תשובה,
        התשובה, פתרון, תשובה סופית; is: התשובה היא""",
    "ro": """
        and: și, si, şi; or: sau, ori; option: varianta, opțiunea, opțiune, variantă, alegerea, litera,
        opţiunea; answer: răspuns, răspunsul, soluție, răspuns final; is: răspunsul este""",
    "sw": "and: na; or: au, ama; option: chaguo, herufi; answer: jibu, jawabu; is: jibu ni",
    "bn": """
        and: এবং, ও, আর; or: বা, অথবা, কিংবা; option: বিকল্প, অপশন; answer: উত্তর, চূড়ান্ত উত্তর; is:
        উত্তর হল, উত্তর হলো""",
    "te": """
        and: మరియు; or: లేదా; option: ఎంపిక, ఆప్షన్, ఐచ్ఛికం; answer: సమాధానం, జవాబు, తుది సమాధానం; is:
        సమాధానం ఏమిటంటే""",
    "hi": """
        and: और, तथा, एवं, व; or: या, अथवा; option: विकल्प, ऑप्शन; answer: उत्तर, जवाब, अंतिम उत्तर; is:
        उत्तर है""",
}
"""Of each language its words, by kind: for *and* and *or*, for the *option* of a multiple choice and for an *answer*, and how a
sentence begins that gives the answer (*is*)."""


def words_of(language: str) -> Iterator[tuple[str, str]]:
    """The (kind, word) pairs of a language; a word may have spaces."""
    for group in unicodedata.normalize("NFC", BY_LANGUAGE[language]).split(";"):
        kind, _, words = group.partition(":")
        for word in words.split(","):
            yield kind.strip(), " ".join(word.split())


def _all_languages(kind: str) -> tuple[str, ...]:
    """The words of a kind in all languages, each once, the longest first."""
    words = {word for language in BY_LANGUAGE for its_kind, word in words_of(language) if its_kind == kind}
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


AND, OR, OPTION, ANSWER, ANSWER_IS = map(_all_languages, ("and", "or", "option", "answer", "is"))


def _set(text: str) -> frozenset[str]:
    return frozenset(unicodedata.normalize("NFC", text).casefold().split())


MODIFIERS = _set(
    """
    square cubic sq cu per of old units quadrat kubik cuadrado cuadrados cuadrada cuadradas cúbico cúbicos
    por carré carrés cube cubes par pro quadrato quadrati quadrata cubo cubi cubico cubici al all quadrado
    quadrados quadrada cúbica квадратный квадратных квадратные кв кубических куб в persegi kubik vuông khối
    trên mỗi pătrat pătrați cub pe mraba ujazo kwa ตาราง ลูกบาศก์ ต่อ مربع مربعة مكعب مكعبة في لكل מרובע
    מרובעים מעוקב ריבועי לשעה বর্গ ঘন প্রতি वर्ग घन प्रति చదరపు ఘన 平方 立方 每 毎 제곱 세제곱
    """
)
"""What stands between or before units and changes no number: square, cubic, per."""

MULTIPLIERS = {
    unicodedata.normalize("NFC", word): 10**exponent
    for exponent, words in {
        3: """
            thousand thousands 千 천 тысяч тысячи тысяча тыс mil mille mila tausend Tausend nghìn ngàn ribu พัน אלף אלפים mii হাজার
            వేలు हज़ार हजार ألف آلاف
            """,
        4: "万 萬 만 หมื่น",
        5: "lakh lakhs লাখ లక్షలు लाख แสน",
        6: """
            million millions Million Millionen миллион миллиона миллионов млн millón millones milione milioni milhão milhões
            triệu juta ล้าน מיליון milion milioane مليون
            """,
        7: "crore crores কোটি కోట్లు करोड़",
        8: "億 亿 억",
        9: "billion billions milliard milliards Milliarde Milliarden miliardi miliard miliar tỷ млрд مليار",
    }.items()
    for word in words.split()
}
"""Words that multiply the number before them, with their values."""

CHANGING = frozenset(word.casefold() for word in MULTIPLIERS) | _set(
    """
    trillion quadrillion hundred hundreds dozen dozens half halves third thirds fourth fourths fifth fifths
    sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth
    thousandths millionth millionths halved double doubled triple tripled twice gross promille permille
    reciprocal inverse opposite imaginary wrong incorrect hex hexadecimal octal binary ternary 百 半 割 打 兆 백 조 пол
    сто docena docenas cien douzaine hundert dutzend dozzina dúzia bilhões مئة โหล ร้อย trăm lusin ratus מאה
    miliarde sute elfu laki dazeni mia ডজন শত వంద दर्जन सौ more less fewer least most than over under about not
    no none only odd even prime composite mod modulo base factorial squared cubed or and if when where for is
    are am pm percent times positive negative true false undefined infinity remaining plus minus each menos más
    moins weniger mehr meno più mais puțin mai au
    trillions quintillion sextillion quarter quarters zehn zwanzig approximately approx roughly almost nearly
    unknown guess maybe perhaps probably unsure
    viertel drittel fünftel sechstel achtel zehntel hundertstel tausendstel billion billionen billiarde billiarden
    trilliarde trilliarden nicht falsch kein keine etwa ungefähr circa doppelt paar höchstens mindestens
    tercio tercios cuarto cuartos quinto quintos sexto octavo octavos décimo décimos centésimo centésimos milésimo
    medio medios billón billones decena decenas centena centenas centenar centenares veintena veintenas aproximadamente
    quizá quizás tal vez incorrecto cientos
    tiers quart quarts cinquième cinquièmes sixième dixième dixièmes centième centièmes millième millièmes demi demie
    demis dizaine dizaines centaine centaines vingtaine vingtaines millier milliers environ peut-être faux pas cent cents
    terzo terzi quarti quinta decimo decimi centesimo centesimi millesimo mezzo mezza decina decine centinaio centinaia
    migliaio migliaia bilione bilioni circa forse sbagliato
    terço terços quartos décima décimas meia meio dezena dezenas dúzias trilhão trilhões milhar milhares bilhão talvez cerca
    errado
    треть трети третей четверть четверти четвертей пятых пятая пятые десятых десятая десятые сотых сотая сотые тысячных
    половина половины десяток десятка десятков сотня сотни сотен дюжина дюжины дюжин триллион триллиона триллионов
    миллиард миллиарда миллиардов неверно примерно около приблизительно почти
    ثلث ثلثا أثلاث ربع أرباع خمس أخماس عشر أعشار نصف عشرات مئات تريليون تقريبا تقريبًا حوالي خطأ ليس
    setengah sepertiga seperempat perempat pertiga triliun puluh puluhan ratusan ribuan jutaan sekitar kira-kira salah bukan
    nửa phần tá chục vạn khoảng sai không
    שליש שלישים רבע רבעים חמישית עשירית חצי תריסר עשרות מאות טריליון בערך כמעט לא שגוי
    treime treimi sfert sferturi cincime cincimi zecime zecimi jumătate jumătăți zeci trilion trilioane aproximativ
    circa greșit nu
    nusu theluthi robo trilioni kumi makumi takriban karibu si sio
    অর্ধেক তৃতীয়াংশ চতুর্থাংশ প্রায় নয় ভুল
    సగం మూడోవంతు పావు దాదాపు కాదు తప్పు
    आधा आधे तिहाई चौथाई पाव लगभग करीब नहीं गलत अरब खरब
    分之一 三分 四分 倍半 约 約 大约 大約 不 错 錯 左右 以上 以下 至少 至多 十 拾
    半分 約 以上 以下 未満 ほど くらい ではない
    절반 반 약 이상 이하 미만 정도 아님 조 십
    ครึ่ง เศษ ประมาณ ไม่ สิบ ล้านล้าน
    """
)
"""Words that change the number beside them, so they are not units: dozens, thirds, *not*, *at least*, *odd*, *a.m.*"""

PHRASES = {
    phrase.strip(): english
    for english, phrases in {
        "yes": """
            yes, 是, 是的, sí, si, oui, ja, はい, да, sì, sim, 네, 예, نعم, ใช่, có, ya, כן, da, ndiyo,
            হ্যাঁ, అవును, हाँ, हां
            """,
        "no": """
            no, 否, 不, 不是, non, nein, いいえ, нет, não, 아니요, 아니오, لا, ไม่, ไม่ใช่, không, tidak, לא, nu,
            hapana, না, కాదు, नहीं
            """,
        "true": """
            true, 真, 正确, 正確, verdadero, vrai, wahr, richtig, 正しい, верно, vero, verdadeiro, 참, صحيح,
            จริง, đúng, benar, נכון, adevărat, kweli, সত্য, నిజం, सत्य
            """,
        "false": """
            false, 假, 错误, 錯誤, falso, faux, falsch, 誤り, неверно, 거짓, خطأ, เท็จ, sai, salah, לא נכון,
            fals, uongo, মিথ্যা, తప్పు, असत्य
            """,
        "odd": """
            odd, 奇数, 奇數, impar, impair, ungerade, нечётное, нечетное, dispari, ímpar, 홀수, فردي, คี่,
            lẻ, số lẻ, ganjil, אי-זוגי, বিজোড়, బేసి, विषम
            """,
        "even": """
            even, 偶数, 偶數, par, pair, gerade, чётное, четное, pari, 짝수, زوجي, คู่, chẵn, số chẵn,
            genap, זוגי, জোড়, సరి, सम
            """,
        "no solution": """
            no solution, no solutions, there is no solution, there are no solutions, has no
            solution, has no solutions, 无解, 無解, sin solución, no hay solución, no tiene solución,
            pas de solution, aucune solution, keine lösung, keine lösungen, 解なし, нет решений, нет
            решения, решений нет, nessuna soluzione, sem solução, não há solução, 해가 없다, 해 없음, لا
            يوجد حل, لا حل, ไม่มีคำตอบ, vô nghiệm, tidak ada solusi, אין פתרון, nu are soluții,
            nicio soluție, fără soluții, hakuna suluhisho, কোনো সমাধান নেই, పరిష్కారం లేదు, कोई हल
            नहीं, कोई समाधान नहीं
            """,
    }.items()
    for phrase in " ".join(unicodedata.normalize("NFC", phrases).casefold().split()).split(",")
}
"""Answers in words alone, in any language, and what they mean in English."""

IF = _set(
    """
    if when for where whenever wenn falls für si quand pour se quando per para если при для 若 当 當 如果 のとき jika khi
    إذا यदि
    """
)
"""What a condition begins with."""

OTHERWISE = _set("otherwise else sonst sinon altrimenti иначе 其他 それ以外 lainnya अन्यथा")
"""What stands for all other cases."""

ARTICLES = _set(
    """
    the a an is are of der die das le la les el los il lo os
    """
)
"""Words that are ignored between other words."""

FUNCTIONS = _set(
    """
    sqrt cbrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min gcd lcm abs floor ceil det pi
    theta alpha beta gamma delta lambda infinity inf
    """
)
"""Runs of letters that are mathematics."""

SHORT = _set(
    """
    km cm mm dm nm kg mg ml cl dl hr hrs ft lb lbs oz mph kmh kph usd eur gbp kwh am pm yes no not odd even
    and or if is for all any none day old per cup pie men the
    """
)
"""Runs of two or three letters that are words or units, and not products of variables."""
