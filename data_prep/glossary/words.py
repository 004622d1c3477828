"""Words of many languages that mark a glossary, its columns, its references, and the parts that hold no terms."""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any_of(text: str) -> str:
    """Returns a regular expression for the alternatives, which | or a new line parts."""
    return "|".join(part.strip() for part in text.replace("\n", "|").split("|") if part.strip())


# A page about terms, by its title, first heading or address
ABOUT_TERMS = re.compile(
    _any_of("""
        glossar | glosar | terminolog | lexi[ck]on | vocabular | dictionary | definitions | abbreviations | acronyms
        wörterbuch | begrippen | woordenlijst | ordlist | słown | slovník | szójegyzék | fogalomtár | sanasto | sözlük
        глосс?ар | терминолог | лексикон | словар | γλωσσάρι | מילון | מונחים | معجم | مسرد | istilah | thuật ngữ
        用語 | 용어 | 术语 | 術語 | 词汇 | 詞彙"""),
    re.I,
)

# Headings of the columns of a table
TERM_HEADS = _words("""
    term terms word words abbreviation acronym concept entry expression phrase
    begriff begriffe fachbegriff wort abkürzung terme mot sigle abréviation acronyme notion
    término palabra concepto abreviatura sigla termine parola voce termo palavra conceito begrip woord afkorting
    termin pojęcie skrót hasło pojem termín zkratka begrepp ord förkortning termi käsite terim kavram termen noțiune
    термин понятие слово сокращение аббревиатура термін поняття όρος מונח istilah fogalom
    用語 語句 略語 용어 약어 术语 術語 词 缩写
""")
DEFINITION_HEADS = _words("""
    definition definitions meaning description explanation
    bedeutung erklärung beschreibung erläuterung définition signification explication
    definición significado descripción explicación definizione significato descrizione spiegazione
    definição descrição explicação definitie betekenis omschrijving uitleg
    definicja znaczenie opis definice význam popis betydelse förklaring määritelmä selitys tanım anlam açıklama
    definiție definiția meghatározás jelentés определение значение описание пояснение толкование расшифровка
    визначення значення опис ορισμός επεξήγηση הגדרה הסבר definisi arti
    定義 意味 説明 정의 의미 설명 뜻 定义 含义 解释 說明 说明
""")

# Further headings, of the plain tables of a glossary only: elsewhere "Name" and "Details" head tables of anything
LOOSE_TERM_HEADS = TERM_HEADS | _words("""
    name names code codes symbol symbols initialism initialisms title item items subject topic label letters short form
    name kürzel zeichen titel bezeichnung thema nom symbole libellé nombre sigla símbolo nome símbolo naam
    наименование название обозначение символ 名称 名前 記号 이름 기호 名稱 代码
""")
LOOSE_DEFINITION_HEADS = DEFINITION_HEADS | _words("""
    stands expansion expanded full long details detail text note notes translation comment comments what information
    interpretation content bezeichnung langform ausgeschrieben text hinweis details détails commentaire detalles notas
    dettagli opmerking подробности примечание комментарий перевод 備考 内容 内訳 설명문 备注 全称 全稱
""")

# Sections that stand among the terms of a page and are none; the letters of its index: "A", "0–9", "A – C"
NO_TERM = re.compile(
    _any_of(r"""
        see also | references | external links | further reading | bibliography | sources | notes | footnotes
        contents | index | table of contents | navigation | related (?:pages|topics|articles)
        siehe auch | einzelnachweise | weblinks | literatur | voir aussi | références | liens externes
        notes et références | véase también | referencias | enlaces externos | vedi anche | note
        collegamenti esterni | zie ook | externe links | см\. также | примечания | ссылки | литература | источники
        содержание | 関連項目 | 脚注 | 外部リンク | 参考文献 | 같이 보기 | 각주 | 외부 링크 | 参见 | 参考资料"""),
    re.I,
)
LETTER = re.compile(r"\W*(?:\w|0\W?9|\w\W{1,3}\w)\W*")

# "See X" in the place of a definition: words before the target, words that are sure only before a link, words after it
SEE = _any_of(r"""
    see | see also | siehe | siehe auch | voir | voir aussi | ver | véase | vea | veja | vedi | vedi anche | zie | sjá
    žr\. | žiūrėk | skat\. | vezi | см\. | смотри | смотрите | див\. | вж\. | вижте | zob\. | patrz | viz | viď | lásd
    ld\. | bkz\. | katso | βλ\. | βλέπε | δείτε | lihat | ראו | ראה | انظر | 参见 | 參見 | → | ⇒ | ➔
""")
SEE_LINK = _any_of(rf"{SEE} | link | se | s\. | vgl\. | cf\. | ks\. | xem | 见 | 見 | = | :?term:")
SEE_AFTER = _any_of("を参照 | を見よ | 参照 | を参照のこと | 을 참조 | 를 참조 | 을 보라 | 를 보라 | 참조 | 참고")

# Classes of definition lists that documentation tools make for code and metadata
OTHER_LISTS = _words("""
    field-list option-list docinfo footnote citation function method class attribute data exception property
    staticmethod classmethod describe py c cpp js
""")

# Parts of a page that are no text of it, by the classes of Sphinx, MkDocs, Docusaurus, Pandoc and MediaWiki
FURNITURE_CLASSES = _words("""
    headerlink hash-link header-anchor anchorjs-link permalink viewcode-link mw-editsection editsection
    mw-cite-backlink reflist references mw-references-wrap navbox infobox hatnote toc toclimit noprint metadata
    footnote-ref footnote-reference footnote-backref footnotes footnote sphinxsidebar Template-Fact
    mwe-math-mathml-inline mwe-math-mathml-display
""")
