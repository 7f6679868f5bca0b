"""Units of measure, time, money and counting, as they stand beside a number in an answer, in each language of `phrases.NAMES`.

A number with one of these is that number, in whatever language: else an answer in English would be right that is wrong in
another. No word among them changes the number: thousands (万, тысяч), dozens, halves. Those for per cent stand apart.
"""

from __future__ import annotations

import unicodedata

BY_LANGUAGE: dict[str, str] = {
    "en": """
        km cm mm m kg mg g ml l s sec min h hr hrs ft lb lbs mph kmph USD EUR kilometer kilometers kilometre kilometres
        centimeter centimeters centimetre centimetres millimeter millimeters millimetre millimetres meter meters metre metres
        mile miles feet inch inches yard yards kilogram kilograms gram grams pound pounds liter liters litre litres second
        seconds minute minutes hour hours day days week weeks month months year years degree degrees unit units dollar dollars
        euro euros cent cents rupee rupees yen yuan""",
    "zh": """
        毫米 厘米 公分 米 公尺 千米 公里 平方米 平方厘米 立方米 立方厘米 克 千克 公斤 毫升 升 秒 秒钟 分 分钟 分鐘
        小时 小時 个小时 個小時 天 日 周 星期 月 个月 個月 年 岁 歲 度 倍 次 个 個 人 名 位 只 隻 条 條 本 张 張 支 枝
        件 块 塊 元 美元 欧元 歐元 美分""",
    "es": """
        metro metros kilómetro kilómetros centímetro centímetros gramo gramos kilogramo kilogramos kilo kilos litro
        litros segundo segundos minuto minutos hora horas día días semana semanas mes meses año años grado grados
        unidad unidades dólar dólares peso pesos centavo centavos céntimo céntimos""",
    "fr": """
        mètre mètres kilomètre kilomètres centimètre centimètres gramme grammes kilogramme kilogrammes kilo kilos
        litre litres seconde secondes minute minutes heure heures jour jours semaine semaines mois an ans année années
        degré degrés unité unités centime centimes franc francs""",
    "de": """
        Meter Metern Kilometer Kilometern Zentimeter Zentimetern Millimeter Gramm Kilogramm Kilo Liter Litern Sekunde
        Sekunden Minute Minuten Stunde Stunden Std Tag Tage Tagen Woche Wochen Monat Monate Monaten Jahr Jahre Jahren
        Grad Stück Mal Euro Dollar Cent Franken""",
    "ja": """
        ミリメートル センチメートル センチ メートル キロメートル 平方メートル 平方センチメートル 立方メートル グラム
        キログラム キロ リットル 秒 秒間 分 分間 時間 日 日間 週間 か月 ヶ月 ケ月 カ月 ヵ月 年 年間 歳 才 度 倍 回 個
        つ 人 名 本 枚 匹 冊 台 羽 頭 円 ドル ユーロ セント""",
    "ru": """
        мм см м км миллиметр миллиметра миллиметров сантиметр сантиметра сантиметров метр метра метров километр
        километра километров г кг грамм грамма граммов килограмм килограмма килограммов л литр литра литров с сек
        секунда секунды секунд мин минута минуты минут ч час часа часов день дня дней неделя недели недель месяц
        месяца месяцев год года лет градус градуса градусов раз раза шт штука штуки штук человек человека руб рубль
        рубля рублей копейка копейки копеек доллар доллара долларов евро цент цента центов""",
    "it": """
        metro metri chilometro chilometri centimetro centimetri grammo grammi chilogrammo chilogrammi chilo chili
        litro litri secondo secondi minuto minuti ora ore giorno giorni settimana settimane mese mesi anno anni grado
        gradi unità dollaro dollari centesimo centesimi""",
    "pt": """
        metro metros quilômetro quilômetros quilómetro quilómetros centímetro centímetros grama gramas quilograma
        quilogramas quilo quilos litro litros segundo segundos minuto minutos hora horas dia dias semana semanas mês
        meses ano anos grau graus unidade unidades real reais dólar dólares centavo centavos""",
    "ko": """
        밀리미터 센티미터 미터 킬로미터 제곱미터 제곱센티미터 그램 킬로그램 리터 초 분 시간 일 주 주일 개월 달 년 살
        세 도 배 번 개 명 사람 마리 권 장 대 원 달러 유로 센트""",
    "ar": """
        متر مترا مترًا أمتار سنتيمتر سنتيمترا سنتيمترًا كيلومتر كيلومترا كيلومترًا كيلومترات سم كم غرام غراما غرامًا جرام
        جراما جرامًا كيلوغرام كيلوغراما كيلوغرامًا كيلوجرام كغم كجم كيلو لتر لترا لترًا لترات ثانية ثوان ثواني دقيقة
        دقائق ساعة ساعات يوم يوما يومًا أيام أسبوع أسبوعا أسبوعًا أسابيع شهر شهرا شهرًا أشهر شهور سنة سنوات عام عاما عامًا
        أعوام درجة درجات مرة مرات قطعة قطع دولار دولارا دولارًا دولارات يورو ريال ريالا ريالًا درهم درهما درهمًا جنيه
        جنيها جنيهًا""",
    "th": """
        มิลลิเมตร เซนติเมตร เมตร กิโลเมตร ตารางเมตร ตารางเซนติเมตร กรัม กิโลกรัม ลิตร วินาที นาที ชั่วโมง วัน สัปดาห์ เดือน ปี องศา เท่า
        ครั้ง คน ตัว ชิ้น อัน ลูก ใบ เล่ม ผล ฟอง บาท ดอลลาร์ ยูโร เซนต์""",
    "vi": """
        mét kilômét xentimét gam kilôgam lít giây phút giờ tiếng ngày tuần tháng năm tuổi độ lần cái chiếc quả người
        con cuốn viên đồng đô euro""",
    "id": """
        meter kilometer sentimeter gram kilogram kilo liter detik menit jam hari minggu bulan tahun derajat kali buah
        orang ekor lembar butir rupiah dolar euro""",
    "he": """
        מטר מטרים קילומטר קילומטרים סנטימטר סנטימטרים ק"מ ס"מ ק״מ ס״מ גרם גרמים קילוגרם קילו ק"ג ק״ג ליטר ליטרים שנייה
        שניות דקה דקות שעה שעות יום ימים שבוע שבועות חודש חודשים שנה שנים מעלה מעלות פעמים יחידה יחידות שקל שקלים ש"ח
        ש״ח דולר דולרים יורו סנט סנטים""",
    "ro": """
        metru metri kilometru kilometri centimetru centimetri gram grame kilogram kilograme litru litri secundă
        secunde minut minute oră ore zi zile săptămână săptămâni lună luni an ani grad grade bucată bucăți leu lei
        dolar dolari euro bani""",
    "sw": """
        mita kilomita sentimita gramu kilo kilogramu lita sekunde dakika saa siku wiki mwezi miezi mwaka miaka digrii
        nyuzi mara vipande shilingi dola yuro senti""",
    "bn": """
        মিটার কিলোমিটার সেন্টিমিটার কিমি সেমি গ্রাম কিলোগ্রাম কেজি লিটার সেকেন্ড মিনিট ঘন্টা ঘণ্টা দিন সপ্তাহ মাস বছর ডিগ্রি
        গুণ বার টি টা জন খানা টাকা ডলার ইউরো সেন্ট""",
    "te": """
        మీటర్లు కిలోమీటర్లు సెంటీమీటర్లు కిమీ సెమీ గ్రాములు కిలోగ్రాములు కిలోలు కేజీ లీటర్లు సెకన్లు సెకండ్లు నిమిషాలు గంటలు రోజులు వారాలు నెలలు సంవత్సరాలు
        డిగ్రీలు రెట్లు సార్లు మంది రూపాయలు డాలర్లు యూరోలు సెంట్లు""",
    "hi": """
        मीटर किलोमीटर सेंटीमीटर किमी सेमी ग्राम किलोग्राम किग्रा किलो लीटर सेकंड सेकेंड मिनट घंटा घंटे घण्टे दिन सप्ताह हफ्ते हफ़्ते महीना
        महीने माह साल वर्ष डिग्री गुना बार लोग रुपया रुपये रुपए डॉलर यूरो सेंट""",
}

PERCENT = (
    "percent", "per cent", "pct", "Prozent", "por ciento", "pour cent", "per cento", "por cento", "la sută", "процент",
    "процента", "процентов", "パーセント", "퍼센트", "프로", "في المئة", "في المائة", "بالمئة", "بالمائة", "เปอร์เซ็นต์",
    "phần trăm", "persen", "אחוז", "אחוזים", "শতাংশ", "శాతం", "प्रतिशत",
)  # fmt: skip
"""What a per cent sign is read as, in words."""

UNITS = frozenset(unicodedata.normalize("NFC", " ".join(BY_LANGUAGE.values())).split())
"""What may follow a number."""

LEADING = frozenset([*BY_LANGUAGE["sw"].split(), "R", "US", "Rp", "Rs", "KSh", "Ksh", "TSh", "Tsh", "Sh"])
"""What may stand before one: Swahili says `saa 5`; and money."""
