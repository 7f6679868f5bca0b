"""Units of measure, time, money and counting, as they stand beside a number in an answer, in each language of `phrases.NAMES`.

A number with one of these words is that number, so that an answer is judged the same in every language. No word among them
changes the number: thousands (万, тысяч), dozens and halves are in `answer_words.CHANGING`. The words for per cent are listed
apart.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction

from jaxrl_ml.rewards.answer_words import MODIFIERS

BY_LANGUAGE: dict[str, str] = {
    "en": """
        km: km kilometer kilometers kilometre kilometres; m: m meter meters metre metres; cm: cm
        centimeter centimeters centimetre centimetres; mm: mm millimeter millimeters millimetre
        millimetres; mile: mile miles; ft: ft foot feet; inch: inch inches; yard: yard yards; kg: kg
        kilogram kilograms; g: g gram grams; mg: mg; lb: lb lbs pound pounds; l: l liter liters litre
        litres; ml: ml; s: s sec second seconds; min: min minute minutes; h: h hr hrs hour hours; day:
        day days; week: week weeks; month: month months; year: year years; degree: degree degrees;
        dollar: USD dollar dollars; cent: cent cents; euro: EUR euro euros; rupee: rupee rupees; yen:
        yen; yuan: yuan; Pa: Pa; kPa: kPa; Hz: Hz; kHz: kHz; MHz: MHz; eV: eV; keV: keV; MeV: MeV; kJ:
        kJ; kW: kW; kWh: kWh; mol: mol; rpm: rpm; dB: dB; rad: rad radian radians; nm: nm nanometer
        nanometers; dm: dm; ounce: oz ounce ounces; acre: acre acres; watt: watt watts; joule: joule
        joules; newton: newton newtons; volt: volt volts; kelvin: kelvin kelvins; : mph kmph unit units
        cup cups""",
    "zh": """
        mm: 毫米; cm: 厘米 公分 平方厘米 立方厘米; m: 米 公尺 平方米 立方米; km: 千米 公里; g: 克; kg:
        千克 公斤; ml: 毫升; l: 升; s: 秒 秒钟; min: 分钟 分鐘; h: 小时 小時 个小时 個小時; day: 天 日;
        week: 周 星期; month: 月 个月 個月; year: 年; degree: 度; yuan: 元; dollar: 美元; euro: 欧元
        歐元; cent: 美分; : 分 岁 歲 倍 次 个 個 人 名 位 只 隻 条 條 本 张 張 支 枝 件 块 塊""",
    "es": """
        m: metro metros; km: kilómetro kilómetros; cm: centímetro centímetros; g: gramo gramos; kg:
        kilogramo kilogramos kilo kilos; l: litro litros; s: segundo segundos; min: minuto minutos; h:
        hora horas; day: día días; week: semana semanas; month: mes meses; year: año años; degree: grado
        grados; dollar: dólar dólares; peso: peso pesos; cent: centavo centavos céntimo céntimos; :
        unidad unidades""",
    "fr": """
        m: mètre mètres; km: kilomètre kilomètres; cm: centimètre centimètres; g: gramme grammes; kg:
        kilogramme kilogrammes kilo kilos; l: litre litres; s: seconde secondes; min: minute minutes; h:
        heure heures; day: jour jours; week: semaine semaines; month: mois; year: an ans année années;
        degree: degré degrés; cent: centime centimes; franc: franc francs; : unité unités""",
    "de": """
        m: Meter Metern Quadratmeter Quadratmetern Kubikmeter; km: Kilometer Kilometern
        Quadratkilometer; cm: Zentimeter Zentimetern Quadratzentimeter Kubikzentimeter; mm: Millimeter;
        g: Gramm; kg: Kilogramm Kilo; l: Liter Litern; s: Sekunde Sekunden; min: Minute Minuten; h:
        Stunde Stunden Std; day: Tag Tage Tagen; week: Woche Wochen; month: Monat Monate Monaten; year:
        Jahr Jahre Jahren; degree: Grad; euro: Euro; dollar: Dollar; cent: Cent; franc: Franken; : Stück
        Mal""",
    "ja": """
        mm: ミリメートル; cm: センチメートル センチ 平方センチメートル; m: メートル 平方メートル
        立方メートル; km: キロメートル; g: グラム; kg: キログラム; l: リットル; s: 秒 秒間; min: 分
        分間; h: 時間; day: 日 日間; week: 週間; month: か月 ヶ月 ケ月 カ月 ヵ月; year: 年 年間; degree:
        度; yen: 円; dollar: ドル; euro: ユーロ; cent: セント; : キロ 歳 才 倍 回 個 つ 人 名 本 枚 匹
        冊 台 羽 頭""",
    "ru": """
        mm: мм миллиметр миллиметра миллиметров; cm: см сантиметр сантиметра сантиметров; m: м метр
        метра метров; km: км километр километра километров; g: г грамм грамма граммов; kg: кг килограмм
        килограмма килограммов; l: л литр литра литров; s: с сек секунда секунды секунд; min: мин минута
        минуты минут; h: ч час часа часов; day: день дня дней; week: неделя недели недель; month: месяц
        месяца месяцев; year: год года лет; degree: градус градуса градусов; ruble: руб рубль рубля
        рублей; kopeck: копейка копейки копеек; dollar: доллар доллара долларов; euro: евро; cent: цент
        цента центов; : раз раза шт штука штуки штук человек человека""",
    "it": """
        m: metro metri; km: chilometro chilometri; cm: centimetro centimetri; g: grammo grammi; kg:
        chilogrammo chilogrammi chilo chili; l: litro litri; s: secondo secondi; min: minuto minuti; h:
        ora ore; day: giorno giorni; week: settimana settimane; month: mese mesi; year: anno anni;
        degree: grado gradi; dollar: dollaro dollari; cent: centesimo centesimi; : unità""",
    "pt": """
        m: metro metros; km: quilômetro quilômetros quilómetro quilómetros; cm: centímetro centímetros;
        g: grama gramas; kg: quilograma quilogramas quilo quilos; l: litro litros; s: segundo segundos;
        min: minuto minutos; h: hora horas; day: dia dias; week: semana semanas; month: mês meses; year:
        ano anos; degree: grau graus; real: real reais; dollar: dólar dólares; cent: centavo centavos; :
        unidade unidades""",
    "ko": """
        mm: 밀리미터; cm: 센티미터 제곱센티미터; m: 미터 제곱미터; km: 킬로미터; g: 그램; kg: 킬로그램;
        l: 리터; s: 초; min: 분; h: 시간; day: 일; week: 주 주일; month: 개월 달; year: 년; degree: 도;
        won: 원; dollar: 달러; euro: 유로; cent: 센트; : 살 세 배 번 개 명 사람 마리 권 장 대""",
    "ar": """
        m: متر مترا مترًا أمتار; cm: سنتيمتر سنتيمترا سنتيمترًا سم; km: كيلومتر كيلومترا كيلومترًا
        كيلومترات كم; g: غرام غراما غرامًا جرام جراما جرامًا; kg: كيلوغرام كيلوغراما كيلوغرامًا كيلوجرام
        كغم كجم كيلو; l: لتر لترا لترًا لترات; s: ثانية ثوان ثواني; min: دقيقة دقائق; h: ساعة ساعات;
        day: يوم يوما يومًا أيام; week: أسبوع أسبوعا أسبوعًا أسابيع; month: شهر شهرا شهرًا أشهر شهور;
        year: سنة سنوات عام عاما عامًا أعوام; degree: درجة درجات; dollar: دولار دولارا دولارًا دولارات;
        euro: يورو; riyal: ريال ريالا ريالًا; dirham: درهم درهما درهمًا; pound: جنيه جنيها جنيهًا; : مرة
        مرات قطعة قطع""",
    "th": """
        mm: มิลลิเมตร; cm: เซนติเมตร ตารางเซนติเมตร; m: เมตร ตารางเมตร; km: กิโลเมตร; g: กรัม; kg:
        กิโลกรัม; l: ลิตร; s: วินาที; min: นาที; h: ชั่วโมง; day: วัน; week: สัปดาห์; month: เดือน;
        year: ปี; degree: องศา; baht: บาท; dollar: ดอลลาร์; euro: ยูโร; cent: เซนต์; : เท่า ครั้ง คน ตัว
        ชิ้น อัน ลูก ใบ เล่ม ผล ฟอง""",
    "vi": """
        m: mét; km: kilômét; cm: xentimét; g: gam; kg: kilôgam; l: lít; s: giây; min: phút; h: giờ
        tiếng; day: ngày; week: tuần; month: tháng; year: năm; degree: độ; dong: đồng; dollar: đô đô_la; euro:
        euro; : tuổi lần cái chiếc quả người con cuốn viên""",
    "id": """
        m: meter; km: kilometer; cm: sentimeter; g: gram; kg: kilogram kilo; l: liter; s: detik; min:
        menit; h: jam; day: hari; week: minggu; month: bulan; year: tahun; degree: derajat; rupiah:
        rupiah; dollar: dolar; euro: euro; : kali buah orang ekor lembar butir""",
    "he": """
        m: מטר מטרים; km: קילומטר קילומטרים ק"מ ק״מ; cm: סנטימטר סנטימטרים ס"מ ס״מ; g: גרם גרמים; kg:
        קילוגרם קילו ק"ג ק״ג; l: ליטר ליטרים; s: שנייה שניות; min: דקה דקות; h: שעה שעות; day: יום ימים;
        week: שבוע שבועות; month: חודש חודשים; year: שנה שנים; degree: מעלה מעלות; shekel: שקל שקלים ש"ח
        ש״ח; dollar: דולר דולרים; euro: יורו; cent: סנט סנטים; : פעמים יחידה יחידות""",
    "ro": """
        m: metru metri; km: kilometru kilometri; cm: centimetru centimetri; g: gram grame; kg: kilogram
        kilograme; l: litru litri; s: secundă secunde; min: minut minute; h: oră ore; day: zi zile;
        week: săptămână săptămâni; month: lună luni; year: an ani; degree: grad grade; leu: leu lei;
        dollar: dolar dolari; euro: euro; ban: bani; : bucată bucăți""",
    "sw": """
        m: mita; km: kilomita; cm: sentimita; g: gramu; kg: kilo kilogramu; l: lita; s: sekunde; min:
        dakika; h: saa; day: siku; week: wiki; month: mwezi miezi; year: mwaka miaka; degree: digrii
        nyuzi; shilling: shilingi; dollar: dola; euro: yuro; cent: senti; : mara vipande""",
    "bn": """
        m: মিটার; km: কিলোমিটার কিমি; cm: সেন্টিমিটার সেমি; g: গ্রাম; kg: কিলোগ্রাম কেজি; l: লিটার; s:
        সেকেন্ড; min: মিনিট; h: ঘন্টা ঘণ্টা; day: দিন; week: সপ্তাহ; month: মাস; year: বছর; degree:
        ডিগ্রি; taka: টাকা; dollar: ডলার; euro: ইউরো; cent: সেন্ট; : গুণ বার টি টা জন খানা""",
    "te": """
        m: మీటర్లు; km: కిలోమీటర్లు కిమీ; cm: సెంటీమీటర్లు సెమీ; g: గ్రాములు; kg: కిలోగ్రాములు కిలోలు
        కేజీ; l: లీటర్లు; s: సెకన్లు సెకండ్లు; min: నిమిషాలు; h: గంటలు; day: రోజులు; week: వారాలు;
        month: నెలలు; year: సంవత్సరాలు; degree: డిగ్రీలు; rupee: రూపాయలు; dollar: డాలర్లు; euro: యూరోలు;
        cent: సెంట్లు; : రెట్లు సార్లు మంది""",
    "hi": """
        m: मीटर; km: किलोमीटर किमी; cm: सेंटीमीटर सेमी; g: ग्राम; kg: किलोग्राम किग्रा किलो; l: लीटर; s:
        सेकंड सेकेंड; min: मिनट; h: घंटा घंटे घण्टे; day: दिन; week: सप्ताह हफ्ते हफ़्ते; month: महीना
        महीने माह; year: साल वर्ष; degree: डिग्री; rupee: रुपया रुपये रुपए; dollar: डॉलर; euro: यूरो;
        cent: सेंट; : गुना बार लोग""",
}
"""For each language entries `concept: words`, separated by `;`; `_` is a space in a word. Words of one concept mean the same
in all languages, whatever the power (`m`, 平方米); those without a concept count things, or mean several."""

PERCENT = (
    "percent", "per cent", "pct", "Prozent", "por ciento", "pour cent", "per cento", "por cento", "la sută", "процент",
    "процента", "процентов", "パーセント", "퍼센트", "프로", "في المئة", "في المائة", "بالمئة", "بالمائة", "เปอร์เซ็นต์",
    "phần trăm", "persen", "אחוז", "אחוזים", "শতাংশ", "శాతం", "प्रतिशत",
)  # fmt: skip
"""What a per cent sign is read as, in words."""


def words_of(language: str) -> Iterator[tuple[str, str]]:
    """The (concept, word) pairs of a language."""
    for group in unicodedata.normalize("NFC", BY_LANGUAGE[language]).split(";"):
        concept, _, words = group.partition(":")
        for word in words.split():
            yield concept.strip(), word.replace("_", " ")


UNITS = frozenset(word for language in BY_LANGUAGE for _, word in words_of(language))
"""What may follow a number."""

LEADING = frozenset(
    [*(word for _, word in words_of("sw")), "R", "US", "Rp", "Rs", "KSh", "Ksh", "TSh", "Tsh", "Sh", "USD", "EUR", "RM"]
)
"""What may stand before one: Swahili says `saa 5`; and money."""

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen yuan", "₹": "rupee", "₽": "ruble", "₩": "won", "฿": "baht",
              "₫": "dong", "₪": "shekel", "৳": "taka", "¢": "cent", "元": "yuan"}  # fmt: skip
"""What each currency sign may mean; others mean something else."""

_CONCEPTS: dict[str, set[str]] = {
    **{sign: set(concepts.split()) for sign, concepts in CURRENCIES.items()},
    "%": {"percent"},
    "°": {"degree", "celsius", "fahrenheit"},
    "°c": {"celsius"},
    "°f": {"fahrenheit"},
    "in": {"inch"},
    '"': {"inch"},
    "''": {"inch", "s"},
    "'": {"ft", "min"},
}
for _language in BY_LANGUAGE:
    for _concept, _word in words_of(_language):
        _CONCEPTS.setdefault(_word.casefold(), set()).update(_CONCEPTS["°"] if _concept == "degree" else {_concept})


def differ(units: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two units mean different things: `km` and `m`, `km` and `km/h`, `m` and `m^2`, `hours` and `минут`, € and $.

    A missing unit never differs. Words that are not units count only if neither side has a unit: five apples are not five
    oranges.
    """
    sides = [[_read(word) for word in side if word.casefold() not in MODIFIERS] for side in (units, others)]
    powers_count = [*map(len, sides)] == [len(units), len(others)]  # not those of `cm^2` and square cm
    if not all(sides):
        return False
    known = [[(word, power, _concepts(word)) for word, power in side if _concepts(word)] for side in sides]
    if not any(known):
        return sides[0] != sides[1]
    if not all(known) or any("" in concepts for side in known for _, _, concepts in side):
        return False
    return len(known[0]) != len(known[1]) or any(
        not concepts & other_concepts or (powers_count and word == other and power != other_power)
        for (word, power, concepts), (other, other_power, other_concepts) in zip(*known, strict=True)
    )


_SCALES = (
    {"week": 604_800, "day": 86_400, "h": 3_600, "min": 60, "s": 1},
    {"yard": 36, "ft": 12, "inch": 1},
    {"lb": 16, "ounce": 1},
    {"km": 1_000_000, "m": 1_000, "cm": 10, "mm": 1},
    {"kg": 1_000, "g": 1},
    {"l": 1_000, "ml": 1},
    {"dollar": 100, "cent": 1},
    {"euro": 100, "cent": 1},
    {"ruble": 100, "kopeck": 1},
)


def totals(parts: Sequence[tuple[Fraction, str]]) -> dict[int, Fraction]:
    """A quantity in several units, given as (number, unit) pairs, in the smallest unit of each scale that has all its units."""
    sums = {}
    for i, scale in enumerate(_SCALES):
        sizes = [scale[min(common)] for _, unit in parts if (common := _concepts(_read(unit)[0]) & scale.keys())]
        if len(sizes) == len(parts):
            sums[i] = sum(value * size for (value, _), size in zip(parts, sizes, strict=True))
    return sums


def _read(unit: str) -> tuple[str, str]:
    """The word and the power of `cm^2`."""
    word, _, power = unit.casefold().partition("^")
    return word, power


def _concepts(word: str) -> set[str]:
    return _CONCEPTS.get(word) or _CONCEPTS.get(word + "s", set())
