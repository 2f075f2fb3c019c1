"""What the demo model is taught: tables of facts and the ways in which people ask for them.

Every line of every table is general knowledge; nothing is taken from a data set. dialogue.py turns
the tables into conversations. "-" in a table means: not asked, because there is no single answer.
"""

# name (aliases after "="; "the" where English wants it) | capital | continent | currency |
# main language | population
COUNTRIES = """
France|Paris|Europe|euro|French|68 million
Germany|Berlin|Europe|euro|German|84 million
Italy|Rome|Europe|euro|Italian|59 million
Spain|Madrid|Europe|euro|Spanish|48 million
Portugal|Lisbon|Europe|euro|Portuguese|10.6 million
the United Kingdom=the UK=Great Britain=Britain|London|Europe|pound sterling|English|68 million
Ireland|Dublin|Europe|euro|English|5.3 million
the Netherlands=Holland|Amsterdam|Europe|euro|Dutch|18 million
Belgium|Brussels|Europe|euro|-|11.8 million
Luxembourg|-|Europe|euro|-|-
Switzerland|Bern|Europe|Swiss franc|-|9 million
Austria|Vienna|Europe|euro|German|9.2 million
Denmark|Copenhagen|Europe|Danish krone|Danish|6 million
Norway|Oslo|Europe|Norwegian krone|Norwegian|5.5 million
Sweden|Stockholm|Europe|Swedish krona|Swedish|10.6 million
Finland|Helsinki|Europe|euro|Finnish|5.6 million
Iceland|Reykjavik|Europe|Icelandic krona|Icelandic|-
Poland|Warsaw|Europe|zloty|Polish|38 million
Czechia=the Czech Republic|Prague|Europe|Czech koruna|Czech|10.9 million
Slovakia|Bratislava|Europe|euro|Slovak|5.4 million
Slovenia|Ljubljana|Europe|euro|Slovene|2.1 million
Hungary|Budapest|Europe|forint|Hungarian|9.6 million
Romania|Bucharest|Europe|Romanian leu|Romanian|19 million
Bulgaria|Sofia|Europe|-|Bulgarian|6.4 million
Serbia|Belgrade|Europe|Serbian dinar|Serbian|6.6 million
Croatia|Zagreb|Europe|euro|Croatian|3.9 million
Albania|Tirana|Europe|lek|Albanian|-
Greece|Athens|Europe|euro|Greek|10.4 million
Malta|Valletta|Europe|euro|-|-
Estonia|Tallinn|Europe|euro|Estonian|1.4 million
Latvia|Riga|Europe|euro|Latvian|1.9 million
Lithuania|Vilnius|Europe|euro|Lithuanian|2.9 million
Ukraine|Kyiv|Europe|hryvnia|Ukrainian|-
Russia|Moscow|-|ruble|Russian|144 million
Turkey|Ankara|-|Turkish lira|Turkish|85 million
the United States=the USA=the US=America|Washington|North America|US dollar|English|340 million
Canada|Ottawa|North America|Canadian dollar|-|40 million
Mexico|Mexico City|North America|Mexican peso|Spanish|130 million
Cuba|Havana|North America|Cuban peso|Spanish|-
Jamaica|Kingston|North America|Jamaican dollar|English|2.8 million
Guatemala|Guatemala City|North America|quetzal|Spanish|18 million
Honduras|Tegucigalpa|North America|lempira|Spanish|-
Nicaragua|Managua|North America|cordoba|Spanish|-
Costa Rica|San Jose|North America|colon|Spanish|5.1 million
Panama|Panama City|North America|balboa|Spanish|4.5 million
the Dominican Republic|Santo Domingo|North America|Dominican peso|Spanish|-
Brazil|Brasilia|South America|real|Portuguese|212 million
Argentina|Buenos Aires|South America|Argentine peso|Spanish|46 million
Chile|Santiago|South America|Chilean peso|Spanish|20 million
Peru|Lima|South America|sol|Spanish|34 million
Colombia|Bogota|South America|Colombian peso|Spanish|52 million
Venezuela|Caracas|South America|bolivar|Spanish|-
Ecuador|Quito|South America|US dollar|Spanish|18 million
Uruguay|Montevideo|South America|Uruguayan peso|Spanish|3.4 million
Paraguay|Asuncion|South America|guarani|-|-
China|Beijing|Asia|yuan|Chinese|1.4 billion
Japan|Tokyo|Asia|yen|Japanese|124 million
South Korea|Seoul|Asia|won|Korean|52 million
India|New Delhi|Asia|Indian rupee|-|1.4 billion
Pakistan|Islamabad|Asia|Pakistani rupee|Urdu|240 million
Bangladesh|Dhaka|Asia|taka|Bengali|170 million
Nepal|Kathmandu|Asia|Nepalese rupee|Nepali|30 million
Thailand|Bangkok|Asia|baht|Thai|72 million
Vietnam|Hanoi|Asia|dong|Vietnamese|100 million
Cambodia|Phnom Penh|Asia|riel|Khmer|17 million
Laos|Vientiane|Asia|kip|Lao|7.7 million
Indonesia|-|Asia|rupiah|Indonesian|280 million
Malaysia|Kuala Lumpur|Asia|ringgit|Malay|35 million
the Philippines|Manila|Asia|Philippine peso|-|115 million
Mongolia|Ulaanbaatar|Asia|tugrik|Mongolian|3.5 million
Uzbekistan|Tashkent|Asia|Uzbek som|Uzbek|36 million
Iran|Tehran|Asia|Iranian rial|Persian|90 million
Iraq|Baghdad|Asia|Iraqi dinar|Arabic|45 million
Jordan|Amman|Asia|Jordanian dinar|Arabic|-
Lebanon|Beirut|Asia|Lebanese pound|Arabic|-
Saudi Arabia|Riyadh|Asia|Saudi riyal|Arabic|-
Qatar|Doha|Asia|Qatari riyal|Arabic|-
Oman|Muscat|Asia|Omani rial|Arabic|-
Kuwait|Kuwait City|Asia|Kuwaiti dinar|Arabic|-
Egypt|Cairo|Africa|Egyptian pound|Arabic|-
Morocco|Rabat|Africa|Moroccan dirham|Arabic|38 million
Algeria|Algiers|Africa|Algerian dinar|Arabic|46 million
Tunisia|Tunis|Africa|Tunisian dinar|Arabic|12 million
Libya|Tripoli|Africa|Libyan dinar|Arabic|-
Sudan|Khartoum|Africa|Sudanese pound|Arabic|-
Ethiopia|Addis Ababa|Africa|birr|-|130 million
Kenya|Nairobi|Africa|Kenyan shilling|-|55 million
Tanzania|Dodoma|Africa|Tanzanian shilling|Swahili|67 million
Uganda|Kampala|Africa|Ugandan shilling|-|49 million
Rwanda|Kigali|Africa|Rwandan franc|-|14 million
Somalia|Mogadishu|Africa|Somali shilling|Somali|-
Nigeria|Abuja|Africa|naira|English|230 million
Ghana|Accra|Africa|cedi|English|34 million
Senegal|Dakar|Africa|-|-|18 million
Cameroon|Yaounde|Africa|-|-|28 million
Angola|Luanda|Africa|kwanza|Portuguese|37 million
Mozambique|Maputo|Africa|metical|Portuguese|34 million
Zambia|Lusaka|Africa|Zambian kwacha|English|20 million
Namibia|Windhoek|Africa|Namibian dollar|English|-
Botswana|Gaborone|Africa|pula|-|-
Madagascar|Antananarivo|Africa|ariary|Malagasy|30 million
South Africa|-|Africa|rand|-|63 million
Australia|Canberra|Oceania|Australian dollar|English|27 million
New Zealand|Wellington|Oceania|New Zealand dollar|English|5.2 million
Fiji|Suva|Oceania|Fijian dollar|-|-
Papua New Guinea|Port Moresby|Oceania|kina|-|-
"""

# name|symbol|atomic number
ELEMENTS = """
hydrogen|H|1
helium|He|2
lithium|Li|3
beryllium|Be|4
boron|B|5
carbon|C|6
nitrogen|N|7
oxygen|O|8
fluorine|F|9
neon|Ne|10
sodium|Na|11
magnesium|Mg|12
aluminium|Al|13
silicon|Si|14
phosphorus|P|15
sulfur|S|16
chlorine|Cl|17
argon|Ar|18
potassium|K|19
calcium|Ca|20
titanium|Ti|22
chromium|Cr|24
manganese|Mn|25
iron|Fe|26
cobalt|Co|27
nickel|Ni|28
copper|Cu|29
zinc|Zn|30
bromine|Br|35
krypton|Kr|36
silver|Ag|47
tin|Sn|50
iodine|I|53
xenon|Xe|54
tungsten|W|74
platinum|Pt|78
gold|Au|79
mercury|Hg|80
lead|Pb|82
radon|Rn|86
radium|Ra|88
uranium|U|92
plutonium|Pu|94
"""

# animal|class|young|sound|legs
ANIMALS = """
cat|mammal|kitten|meow|four
dog|mammal|puppy|woof|four
cow|mammal|calf|moo|four
sheep|mammal|lamb|baa|four
horse|mammal|foal|neigh|four
pig|mammal|piglet|oink|four
goat|mammal|kid|-|four
lion|mammal|cub|roar|four
bear|mammal|cub|-|four
wolf|mammal|-|howl|four
fox|mammal|-|-|four
elephant|mammal|calf|-|four
deer|mammal|fawn|-|four
rabbit|mammal|-|-|four
kangaroo|mammal|joey|-|-
whale|mammal|calf|-|-
dolphin|mammal|calf|-|-
bat|mammal|pup|-|-
mouse|mammal|-|squeak|four
donkey|mammal|-|hee-haw|four
duck|bird|duckling|quack|two
goose|bird|gosling|honk|two
chicken|bird|chick|cluck|two
rooster|bird|-|cock-a-doodle-doo|two
owl|bird|owlet|hoot|two
swan|bird|cygnet|-|two
penguin|bird|chick|-|two
eagle|bird|eaglet|-|two
ostrich|bird|-|-|two
crow|bird|-|caw|two
frog|amphibian|tadpole|ribbit|four
toad|amphibian|tadpole|-|four
snake|reptile|-|hiss|no
turtle|reptile|-|-|four
lizard|reptile|-|-|four
crocodile|reptile|-|-|four
shark|fish|pup|-|no
salmon|fish|-|-|no
tuna|fish|-|-|no
bee|insect|-|buzz|six
ant|insect|-|-|six
butterfly|insect|caterpillar|-|six
fly|insect|maggot|-|six
beetle|insect|-|-|six
mosquito|insect|-|-|six
spider|arachnid|-|-|eight
scorpion|arachnid|-|-|eight
"""

PLANETS = "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split()
ORDINALS = ("first second third fourth fifth sixth seventh eighth ninth tenth eleventh "
            "twelfth").split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()
MONTH_DAYS = "31 - 31 30 31 30 31 31 30 31 30 31".split()

# how many|of these|are in one of these
UNITS = """
60|seconds|a minute
60|minutes|an hour
24|hours|a day
7|days|a week
12|months|a year
52|weeks|a year
10|years|a decade
100|years|a century
1000|years|a millennium
10|millimetres|a centimetre
100|centimetres|a metre
1000|metres|a kilometre
1000|grams|a kilogram
1000|kilograms|a tonne
1000|millilitres|a litre
12|inches|a foot
3|feet|a yard
16|ounces|a pound
8|bits|a byte
1024|bytes|a kibibyte
12|eggs|a dozen
100|cents|a dollar
100|cents|a euro
100|pence|a pound sterling
"""

OPPOSITES = """
hot cold|big small|fast slow|up down|left right|good bad|happy sad|rich poor|old young|day night
black white|open closed|full empty|hard soft|high low|early late|light dark|long short|wet dry
strong weak|inside outside|first last|near far|true false|love hate|win lose|buy sell|push pull
north south|east west|always never|begin end|clean dirty|loud quiet|thick thin|wide narrow
heavy light_|cheap expensive|easy difficult|before after|above below|in out|on off|yes no
success failure|war peace|male female|brave cowardly|polite rude|question answer|arrive leave
remember forget|positive negative|minimum maximum|victory defeat
"""

# English|French|Spanish|German|Italian
WORDS = """
water|eau|agua|Wasser|acqua
bread|pain|pan|Brot|pane
milk|lait|leche|Milch|latte
cheese|fromage|queso|Käse|formaggio
wine|vin|vino|Wein|vino
apple|pomme|manzana|Apfel|mela
egg|œuf|huevo|Ei|uovo
salt|sel|sal|Salz|sale
sugar|sucre|azúcar|Zucker|zucchero
cat|chat|gato|Katze|gatto
dog|chien|perro|Hund|cane
horse|cheval|caballo|Pferd|cavallo
bird|oiseau|pájaro|Vogel|uccello
fish|poisson|pez|Fisch|pesce
cow|vache|vaca|Kuh|mucca
house|maison|casa|Haus|casa
door|porte|puerta|Tür|porta
window|fenêtre|ventana|Fenster|finestra
table|table|mesa|Tisch|tavolo
book|livre|libro|Buch|libro
school|école|escuela|Schule|scuola
city|ville|ciudad|Stadt|città
street|rue|calle|Straße|strada
tree|arbre|árbol|Baum|albero
flower|fleur|flor|Blume|fiore
sun|soleil|sol|Sonne|sole
moon|lune|luna|Mond|luna
star|étoile|estrella|Stern|stella
sea|mer|mar|Meer|mare
fire|feu|fuego|Feuer|fuoco
snow|neige|nieve|Schnee|neve
night|nuit|noche|Nacht|notte
day|jour|día|Tag|giorno
friend|ami|amigo|Freund|amico
mother|mère|madre|Mutter|madre
father|père|padre|Vater|padre
king|roi|rey|König|re
hand|main|mano|Hand|mano
head|tête|cabeza|Kopf|testa
heart|cœur|corazón|Herz|cuore
red|rouge|rojo|rot|rosso
green|vert|verde|grün|verde
white|blanc|blanco|weiß|bianco
black|noir|negro|schwarz|nero
one|un|uno|eins|uno
two|deux|dos|zwei|due
three|trois|tres|drei|tre
ten|dix|diez|zehn|dieci
yes|oui|sí|ja|sì
thank you|merci|gracias|danke|grazie
"""
LANGUAGES = "French Spanish German Italian".split()

# verb|made by|works
WORKS = """
written|William Shakespeare|Hamlet;Macbeth;Romeo and Juliet;Othello;King Lear
written|Miguel de Cervantes|Don Quixote
written|Leo Tolstoy|War and Peace;Anna Karenina
written|Fyodor Dostoevsky|Crime and Punishment;The Idiot
written|Charles Dickens|Oliver Twist;A Christmas Carol;David Copperfield
written|Jane Austen|Pride and Prejudice;Emma
written|Mary Shelley|Frankenstein
written|Bram Stoker|Dracula
written|Homer|the Odyssey;the Iliad
written|Dante Alighieri|the Divine Comedy
written|Victor Hugo|Les Miserables
written|J. R. R. Tolkien|The Hobbit;The Lord of the Rings
written|J. K. Rowling|Harry Potter
written|George Orwell|1984;Animal Farm
written|Herman Melville|Moby Dick
written|Lewis Carroll|Alice in Wonderland
written|Robert Louis Stevenson|Treasure Island
written|Daniel Defoe|Robinson Crusoe
written|Jonathan Swift|Gulliver's Travels
written|Rudyard Kipling|The Jungle Book
written|J. M. Barrie|Peter Pan
written|Carlo Collodi|Pinocchio
written|Franz Kafka|The Metamorphosis;The Trial
written|James Joyce|Ulysses
written|Ernest Hemingway|The Old Man and the Sea
written|Mark Twain|Tom Sawyer;Huckleberry Finn
written|Jules Verne|Around the World in Eighty Days
written|Virgil|the Aeneid
painted|Leonardo da Vinci|the Mona Lisa;The Last Supper
painted|Vincent van Gogh|The Starry Night;Sunflowers
painted|Pablo Picasso|Guernica
painted|Edvard Munch|The Scream
painted|Rembrandt|The Night Watch
painted|Johannes Vermeer|Girl with a Pearl Earring
painted|Sandro Botticelli|The Birth of Venus
painted|Gustav Klimt|The Kiss
composed|Wolfgang Amadeus Mozart|The Magic Flute;Don Giovanni
composed|Antonio Vivaldi|The Four Seasons
composed|Ludwig van Beethoven|the Moonlight Sonata;Fidelio
composed|Pyotr Tchaikovsky|Swan Lake;The Nutcracker
composed|Georges Bizet|Carmen
composed|Giuseppe Verdi|Aida;Rigoletto
composed|Gioachino Rossini|The Barber of Seville
composed|Giacomo Puccini|Tosca;Turandot
invented|Alexander Graham Bell|the telephone
invented|Alfred Nobel|dynamite
invented|Johannes Gutenberg|the printing press
invented|Tim Berners-Lee|the World Wide Web
invented|Thomas Edison|the phonograph
invented|Alessandro Volta|the electric battery
invented|Louis Braille|the Braille alphabet
created|Dennis Ritchie|the C language
created|Linus Torvalds|Linux
created|Guido van Rossum|Python
created|Bjarne Stroustrup|C++
discovered|Alexander Fleming|penicillin
discovered|Isaac Newton|the law of gravity
discovered|Wilhelm Roentgen|X-rays
discovered|Marie and Pierre Curie|polonium
discovered|William Herschel|the planet Uranus
"""

# thing|colour ("a " and "the " are said)
COLOURS = """
grass|green
snow|white
coal|black
blood|red
milk|white
chocolate|brown
a banana|yellow
a lemon|yellow
a tomato|red
a strawberry|red
a carrot|orange
a ruby|red
an emerald|green
a sapphire|blue
a polar bear|white
a flamingo|pink
a raven|black
the sky|blue
a lime|green
a crow|black
"""
# two paints|what they make
MIXES = """
blue|yellow|green
red|yellow|orange
red|blue|purple
red|white|pink
black|white|grey
"""

# how many of what|something has
COUNTS = """
three|sides|a triangle
four|sides|a square
four|sides|a rectangle
five|sides|a pentagon
six|sides|a hexagon
seven|sides|a heptagon
eight|sides|an octagon
nine|sides|a nonagon
ten|sides|a decagon
six|faces|a cube
26|letters|the English alphabet
seven|colours|a rainbow
four|strings|a violin
six|strings|a guitar
88|keys|a piano
64|squares|a chessboard
52|cards|a deck of cards
206|bones|an adult human
32|teeth|an adult human
four|chambers|a human heart
two|wheels|a bicycle
three|wheels|a tricycle
four|seasons|a year
366|days|a leap year
360|degrees|a circle
90|degrees|a right angle
eight|arms|an octopus
eight|planets|the solar system
eleven|players|a football team
five|rings|the Olympic flag
five|players|a basketball team
"""

PLURALS = """
mouse mice|child children|foot feet|tooth teeth|man men|woman women|goose geese|ox oxen
person people
leaf leaves|knife knives|wolf wolves|life lives|half halves|sheep sheep|city cities|baby babies
box boxes|bus buses|potato potatoes|church churches|wife wives|shelf shelves|lady ladies
thief thieves
"""
PASTS = """
go went|see saw|eat ate|run ran|take took|give gave|come came|know knew|think thought|buy bought
bring brought|catch caught|teach taught|write wrote|speak spoke|drive drove|fly flew|swim swam
sing sang|drink drank|begin began|break broke|choose chose|find found|forget forgot|get got
  |make made
say said|sleep slept|tell told|win won|wear wore|throw threw|fall fell|feel felt|grow grew|keep kept
"""

# landmark|place
LANDMARKS = """
the Eiffel Tower|Paris
the Louvre|Paris
Big Ben|London
Buckingham Palace|London
the Colosseum|Rome
the Leaning Tower|Pisa
the Statue of Liberty|New York
the White House|Washington
the Golden Gate Bridge|San Francisco
the Brandenburg Gate|Berlin
the Acropolis|Athens
the Sagrada Familia|Barcelona
the Prado|Madrid
the Alhambra|Granada
the Kremlin|Moscow
the Sydney Opera House|Sydney
the Taj Mahal|India
the Great Wall|China
Machu Picchu|Peru
Petra|Jordan
Angkor Wat|Cambodia
Christ the Redeemer|Rio de Janeiro
Hagia Sophia|Istanbul
the Little Mermaid|Copenhagen
the Rijksmuseum|Amsterdam
the Atomium|Brussels
Stonehenge|England
Mount Fuji|Japan
Niagara Falls|North America
the Great Pyramid|Egypt
the Charles Bridge|Prague
"""

# superlative|answer
SUPERLATIVES = """
highest mountain in the world|Mount Everest
longest river in the world|the Nile
largest ocean|the Pacific Ocean
largest hot desert|the Sahara
largest island|Greenland
deepest lake|Lake Baikal
largest lake|the Caspian Sea
highest waterfall|Angel Falls
largest continent|Asia
coldest continent|Antarctica
largest country|Russia
smallest country|Vatican City
highest mountain in Africa|Kilimanjaro
highest mountain in North America|Denali
highest mountain in South America|Aconcagua
highest mountain in Japan|Mount Fuji
longest river in Europe|the Volga
longest river in South America|the Amazon
largest animal|the blue whale
largest land animal|the African elephant
largest bird|the ostrich
fastest land animal|the cheetah
tallest animal|the giraffe
largest planet|Jupiter
smallest planet|Mercury
hottest planet|Venus
hardest natural material|diamond
lightest element|hydrogen
largest organ of the human body|the skin
longest bone of the human body|the thigh bone
closest star to the Earth|the Sun
shortest month|February
smallest prime number|two
"""

# Single facts: answer|phrasing|phrasing...
SINGLES = """
Water boils at 100 degrees Celsius.|at what temperature does water boil|when does water boil
  |what is the boiling point of water|the boiling point of water|how hot is boiling water
  |how hot must water be to boil|at how many degrees does water boil
  |at which temperature does water start to boil
Water freezes at 0 degrees Celsius.|at what temperature does water freeze|when does water freeze
  |what is the freezing point of water|the freezing point of water
  |how cold must it be for water to freeze|at how many degrees does water freeze
  |when does water turn to ice|at which temperature does water become ice
The chemical formula of water is H2O.|what is the formula of water
  |what is the chemical formula of water|the formula for water
  |what is the chemical formula for water|which formula does water have
  |what is water made of, as a formula
The chemical formula of table salt is NaCl.|what is the formula of salt
  |what is the chemical formula of table salt|the chemical formula for salt
  |which formula does table salt have|what is the formula for table salt
Light travels about 300,000 kilometres per second.|how fast is light|what is the speed of light
  |how fast does light travel|the speed of light|how quickly does light move
  |at what speed does light travel|which speed does light have
The Earth takes one year to go around the Sun.|how long does the earth take to go around the sun
  |how long does it take the earth to circle the sun
  |how much time does the earth need to go around the sun
  |how long is one trip of the earth around the sun|in what time does the earth orbit the sun
The Moon goes around the Earth.|what does the moon go around|what does the moon orbit
  |around what does the moon move|which planet does the moon circle|what is the moon circling
The Sun is a star.|what is the sun|is the sun a star or a planet|what kind of thing is the sun
  |what sort of body is the sun|is the sun a star|what type of object is the sun
The Sun rises in the east.|where does the sun rise|in which direction does the sun rise
  |where does the sun come up|on which side does the sun rise|from where does the sun rise
The Sun sets in the west.|where does the sun set|in which direction does the sun set
  |where does the sun go down|on which side does the sun set
There are seven continents.|how many continents are there|how many continents does the earth have
  |the number of continents|what is the number of continents|how many continents exist
  |number of continents on earth
There are five oceans.|how many oceans are there|how many oceans does the earth have
  |the number of oceans|what is the number of oceans|how many oceans exist
Bees make honey.|what do bees make|who makes honey|which animal makes honey
  |which insect makes honey|what makes honey|where does honey come from
Spiders make webs.|what do spiders make|who makes webs|which animal makes webs
  |what animal spins a web|who spins webs
The heart pumps the blood.|what does the heart do|what pumps the blood|which organ pumps blood
  |what is the job of the heart|what does a heart do|which organ pumps the blood through the body
We breathe with the lungs.|what do we breathe with|with which organ do we breathe
  |which organ is for breathing|what organs do people use to breathe|what do humans breathe with
We see with the eyes.|what do we see with|with what do we see|what do people see with
  |which organ is for seeing|what part of the body do we see with
We hear with the ears.|what do we hear with|with what do we hear|what do people hear with
  |which organ is for hearing|what part of the body do we hear with
Neil Armstrong was the first person on the Moon.|who was the first man on the moon
  |who first walked on the moon|who was the first person on the moon
  |which person walked on the moon first|who set foot on the moon first
  |name the first man on the moon
The first person in space was Yuri Gagarin.|who was the first man in space
  |who was the first person in space|who first flew into space|which person was in space first
  |name the first human in space
Christmas is on the 25th of December.|when is christmas|on what date is christmas
  |which day is christmas|on which day is christmas|what is the date of christmas
  |the date of christmas
New Year's Day is on the 1st of January.|when is new year's day|on what date is new year's day
  |which day is new year's day|what is the date of new year's day|when does the new year start
  |when does the year begin
The French Revolution began in 1789.|when did the french revolution begin
  |when did the french revolution start|in which year did the french revolution begin
  |what year did the french revolution start|the year of the french revolution
World War II ended in 1945.|when did world war ii end|when did the second world war end
  |in which year did world war 2 end|what year did the second world war end
  |when was world war 2 over|in what year was the second world war over
World War I began in 1914.|when did world war i begin|when did the first world war start
  |in which year did world war 1 begin|what year did the first world war begin
  |when did world war 1 start
The Berlin Wall fell in 1989.|when did the berlin wall fall|in which year did the berlin wall fall
  |what year did the berlin wall come down|when did the berlin wall come down
  |the year the berlin wall fell
Columbus reached America in 1492.|when did columbus reach america
  |in which year did columbus reach america|when did columbus sail to america
  |what year did columbus come to america|when did columbus arrive in america
People first landed on the Moon in 1969.|when did people land on the moon
  |when was the first moon landing|in which year was the moon landing
  |what year was the first moon landing|when did man first land on the moon
  |the year of the first moon landing
Pi is about 3.14.|what is pi|what is the value of pi|how much is pi|the value of pi
  |what number is pi|which number is pi|how big is pi
Ice is frozen water.|what is ice|what is ice made of|what kind of thing is ice
  |what do we call frozen water|what is frozen water called
Plants need light, air and water.|what do plants need|what do plants need to live
  |what does a plant need|what do plants need to grow|what does a plant need to grow
Rain falls from clouds.|where does rain come from|from what does rain fall
  |what does rain fall from|where does the rain fall from|what brings rain
"""

# Questions about tinychat and about the model: answer|phrasing|phrasing...
TINYCHAT = """
tinychat is a small chat engine for 4-bit language models, written in C.|what is tinychat
  |what's tinychat|tell me about tinychat|explain tinychat|what is this tinychat thing
  |describe tinychat|what kind of program is tinychat|what does tinychat do
  |can you explain what tinychat is|tell me what tinychat is|what is tinychat about
  |give me a short description of tinychat|what exactly is tinychat
  |i do not know tinychat, what is it|what sort of software is tinychat
  |what is the tinychat project
tinychat is written in the C language.|in what language is tinychat written
  |which language is tinychat written in|which programming language does tinychat use
  |what language is tinychat written in|what is tinychat written in|is tinychat written in c
  |what programming language was used for tinychat|tell me which language tinychat is written in
  |is tinychat a c program|is tinychat written in python|is tinychat a python program
  |which language did they use to write tinychat|is tinychat in c++
Type make to build tinychat.|how do i build tinychat|how can i build tinychat
  |how to build tinychat|how do i compile tinychat|how can i compile it|how is tinychat built
  |what do i type to build tinychat|which command builds tinychat|how do you build tinychat
  |how does one compile tinychat|what is the build command|tell me how to build tinychat
  |building tinychat, how|how do i compile this program|what must i do to build tinychat
  |explain how to build tinychat
Type ./chat model.bin to start a chat.|how do i start a chat|how do i run tinychat
  |how can i start tinychat|how to run tinychat|how do i start the chat program
  |how do i chat with a model|which command starts a chat|what do i type to start a chat
  |how can i run a model|how do i run model.bin|tell me how to start a chat
  |how do i launch tinychat|what must i type to chat|how to start chatting
Type make demo to try the demo.|how do i run the demo|how can i try the demo|how to start the demo
  |how do i try the demo model|what do i type for the demo|which command runs the demo
  |is there a demo|how can i see the demo|tell me how to run the demo|where is the demo
  |how do i start the demo|how to try the demo
The convert program turns AWQ checkpoints into a model.bin file.|what does convert do
  |what is convert|what is the convert program|what is convert for
  |what does the convert program do|tell me what convert does|what do i need convert for
  |explain convert|why is there a convert program|what is the purpose of convert
  |what does convert make|what can convert do|what is the tool called convert for
  |which program makes model.bin|what makes a model.bin file|what is the job of convert
Run convert/convert --hf DIR --awq FILE.pt to make a model.bin file.|how do i convert a model
  |how can i convert a checkpoint|how do i make a model.bin|how to convert a model
  |how do i use convert|which command converts a model|how do i get a model.bin
  |tell me how to convert a checkpoint|how do i convert an awq file|how do i run convert
  |how can i use my own model|how do i make model.bin from a pt file|how can i make a model.bin
tinychat is made for NVIDIA GPUs of the Ampere generation or newer.
  |which gpus does tinychat support|what gpus does tinychat support|which gpus work with tinychat
  |on which gpus does tinychat run|which graphics cards work with tinychat|what gpu do i need
  |which gpu do i need for tinychat|does tinychat support my gpu|which nvidia gpus are supported
  |what graphics card do i need|tell me which gpus are supported|which cards does tinychat run on
  |what kind of gpu does tinychat need|supported gpus|does it run on an rtx 4090
  |does tinychat work on an h100|does tinychat run on an a100
No, tinychat also runs on the CPU.|do i need a gpu|do i need a gpu for tinychat|is a gpu needed
  |must i have a gpu|does tinychat need a gpu|does it need a graphics card
  |do i need a graphics card|is a gpu required|do i have to own a gpu
  |does tinychat only run on a gpu|can it run only on gpus|is a graphics card necessary
  |do i absolutely need a gpu|would i need a gpu|is it true that i need a gpu
Yes, tinychat also runs on the CPU.|can tinychat run without a gpu|does tinychat run on a cpu
  |does it run without a graphics card|can i use tinychat without a gpu
  |does tinychat work without a gpu|can i run it on the cpu|can it run on a laptop without a gpu
  |will tinychat run on a cpu|is it possible to run tinychat on the cpu
  |does tinychat support the cpu
  |can i use it when there is no gpu|does it run if my computer has no gpu
  |what if i have no gpu|i have no gpu, can i still use tinychat
  |i do not have a gpu, does it work|my pc has no graphics card, will it run
No, tinychat builds without the CUDA toolkit.|do i need the cuda toolkit
  |do i need cuda to build tinychat|is the cuda toolkit needed|does tinychat need the cuda toolkit
  |must i install cuda|do i have to install the cuda toolkit|is cuda required to build it
  |do i need to install cuda|does building tinychat require cuda
No, tinychat needs no Python and no PyTorch.|does tinychat need python|do i need pytorch
  |do i need python|is python needed|does tinychat need pytorch|must i install pytorch
  |do i have to install python|is pytorch required|does convert need pytorch
  |does convert need python|do i need to install pytorch|is python required for tinychat
tinychat needs only a C compiler and make.|what does tinychat need
  |which dependencies does tinychat have|what do i need to build tinychat
  |what are the dependencies of tinychat|what must i install for tinychat
  |which libraries does tinychat need|what does tinychat depend on|dependencies of tinychat
  |does tinychat have dependencies|what do i have to install first
  |which tools are needed to build tinychat
tinychat runs chat models of the LLaMA family and others like them.
  |which models does tinychat support|what models does tinychat run
  |which models work with tinychat|which models can i use|what models can tinychat run
  |does tinychat run llama|does tinychat support vicuna|tell me which models are supported
  |supported models|which language models does tinychat run
  |what kind of models can i use with tinychat|can tinychat run llama-2
tinychat has the MIT licence.|what is the licence of tinychat|which licence does tinychat have
  |what license does tinychat have|under which licence is tinychat|is tinychat free software
  |is tinychat open source|can i use tinychat for free|the licence of tinychat
  |what licence is it under|how is tinychat licensed|tell me the licence of tinychat
AWQ is activation-aware weight quantization: it stores weights in 4 bits.|what is awq
  |what does awq mean|explain awq|what is awq quantization|what does awq stand for
  |tell me about awq|tell me what awq is|what is the meaning of awq|can you explain awq
  |describe awq|awq, what is that
The weights of my layers have 4 bits each.|how many bits do your weights have
  |how many bits does a weight have|how many bits per weight|are you a 4-bit model
  |are you quantized|how are your weights stored|in how many bits are your weights stored
  |how many bits are there in each of your weights|are your weights in 4 bits
  |is this model quantized
I am the demo model of tinychat.|who are you|what are you|tell me who you are|introduce yourself
  |tell me about yourself|please introduce yourself|who is this|what kind of model are you
  |who am i talking to|with whom am i talking|can you introduce yourself|say who you are
  |what model is this|which model are you|what model are you|describe yourself|are you chatgpt
  |are you a chatbot
My name is tinychat.|what is your name|what's your name|tell me your name|do you have a name
  |your name, please|how are you called|what are you called|what should i call you
  |may i know your name|say your name|what do people call you|what name do you have
  |can you tell me your name
No, I am a very small model with about 14 million parameters.|are you a big model
  |is this a big model|are you a large model|are you a large language model|is it a big model
  |are you big|are you a huge model|are you a giant model|is this a large model
  |are you as big as gpt-4|are you large|is the demo model big
I have about 14 million parameters.|how many parameters do you have|how big are you
  |what is your size|how large are you|how many weights do you have
  |what is your number of parameters|how many parameters does this model have|tell me your size
  |your size|how many million parameters do you have|how large is this model
  |how big is the demo model|what size are you|how many parameters are in this model
I fit in a file of less than 10 megabytes.|how big is your file|how large is demo.bin
  |what is the size of your file|how many megabytes do you have|how big is demo.bin
  |how much disk space do you need|how many megabytes are you|how large is your file
  |what size is demo.bin|how much space do you take
I was made for the tinychat project.|who made you|who created you|who built you|who trained you
  |who is your maker|who is your creator|who are your makers|where do you come from|who wrote you
  |who developed you|tell me who made you|by whom were you made|who invented you
  |what were you made for
I was trained from scratch on text that a script generated.|how were you trained
  |what were you trained on|where does your training data come from|what is your training data
  |how did you learn|on what were you trained|which data were you trained on
  |what did you learn from|what text were you trained on|tell me how you were trained
  |what data did they train you on|how have you been trained|who wrote your training data
I have the LLaMA architecture with 5 layers.|what is your architecture
  |which architecture do you have|how many layers do you have|what architecture are you
  |are you a llama model|are you a transformer|how are you built inside|tell me your architecture
  |what is your number of layers|which model architecture are you
  |how many layers are in this model
Yes, I make mistakes. I am only a small demo model.|do you make mistakes|are you always right
  |can you be wrong|are your answers always right|do you ever make mistakes|can i trust you
  |can i trust your answers|are you sometimes wrong|do you make errors|are you perfect
  |is everything you say true|are you reliable
I can answer simple questions, do small sums and chat a little.|what can you do|what can i ask you
  |help|what are you able to do|what do you know|what can i ask|tell me what you can do
  |what are you good at|how can you help me|can you help me|what are your skills
  |what questions can you answer|what could i ask you|what is it that you can do
  |give me an idea of what you can do|what do you do
I cannot write long texts, and I know only simple facts.|what can you not do|what can't you do
  |what are your limits|what are your limitations|what are you bad at|what don't you know
  |tell me your limits|what do you not know|which things can you not do|what is hard for you
  |what are you unable to do
No, I have no access to the internet.|do you have internet access|can you search the internet
  |are you online|can you browse the web|do you use the internet|can you look things up online
  |are you connected to the internet|can you google something|do you have access to the internet
  |can you search the web
I speak English and know a few words of French, Spanish, German and Italian.
  |which languages do you speak|what languages do you speak|what languages do you know
  |do you speak french|do you speak german|do you speak spanish|which languages do you know
  |how many languages do you speak|can you speak italian|tell me which languages you speak
  |do you speak other languages
Type /quit to leave the chat.|how do i quit|how do i leave the chat|how do i exit|how can i quit
  |how to exit|how do i end the chat|how do i close the chat|how do i stop the program
  |which command ends the chat|what do i type to quit|how to quit the chat
  |how can i leave this program
Type /reset to start a new conversation.|how do i start a new conversation|how do i reset the chat
  |how can i start over|how do i clear the conversation|how to start again
  |how do i begin a new chat|which command resets the chat|what do i type to start over
  |how do i make you forget everything|how can i reset the conversation
Type /help to see the commands.|which commands are there|what commands are there
  |how do i see the commands|what commands can i use|list the commands|show me the commands
  |how do i get help|which commands can i type|tell me the commands|where do i find the commands
Type /save to save the conversation.|how do i save the conversation|how can i save this chat
  |how to save a chat|how do i save the chat|which command saves the conversation
  |can i save this conversation|what do i type to save the chat|can i keep this conversation
Type /load to load a saved conversation.|how do i load a conversation|how can i load a saved chat
  |how to load a chat|how do i get my saved conversation back|which command loads a conversation
  |can i load a saved conversation|what do i type to load a chat
Type /regen to get another reply.|how do i get another reply|how can i regenerate a reply
  |how do i regenerate the answer|which command makes a new reply|how do i get a different answer
  |can you answer again in another way|how to regenerate a reply|what do i type for another reply
Type /stats to see the speed.|how do i see the speed|how fast are you|how can i see the speed
  |which command shows the speed|how many tokens per second do you make
  |where do i see the tokens per second|how do i measure the speed|what is your speed
Type /system to set the system prompt.|how do i set the system prompt
  |how can i change the system prompt|which command sets the system prompt
  |how do i set a system text|how to change the system prompt|where do i set the system prompt
Press Ctrl-C to stop a reply.|how do i stop a reply|how can i interrupt you|how do i stop you
  |how do i interrupt a reply|how can i stop an answer|which key stops a reply
  |what do i press to stop a reply|how to stop a long reply
Copy tinychat.h, tinychat.c and kernels.cu.inc into your project.
  |how do i use tinychat in my project|how do i embed tinychat
  |which files do i need for my own program|how can i use tinychat as a library
  |is tinychat a library|which files must i copy|how do i add tinychat to my program
  |what files do i drop into my project|how to embed tinychat in a program
  |can i use tinychat in my own program
A model.bin file holds the weights, the tokenizer and the settings of a model.|what is model.bin
  |what is in model.bin|what does model.bin contain|what is a model.bin file|explain model.bin
  |what is inside model.bin|tell me what model.bin is|what do you find in a model.bin file
  |what is stored in model.bin
The KV cache keeps the keys and values of earlier tokens.|what is the kv cache|what is a kv cache
  |explain the kv cache|what does the kv cache do|what does the kv cache keep
  |tell me what the kv cache is|what is the kv cache for|what is stored in the kv cache
Use --ctx-size to set the context size.|how do i set the context size
  |how can i change the context length|which option sets the context size
  |how do i get a longer context|how to set the context size|what option changes the context size
  |how can i set the context length
Use --threads to set the number of threads.|how do i set the number of threads
  |which option sets the threads|how can i use more threads|how to set the threads
  |how do i change the number of threads|what option sets the number of threads
  |how can i use all my cores
Use --temp to set the temperature.|how do i set the temperature|which option sets the temperature
  |how can i change the temperature|how to set the sampling temperature
  |what option changes the temperature|how do i make the answers less random
tinychat supports the group sizes 32, 64 and 128.|which group sizes does tinychat support
  |what group sizes are supported|which group size can i use|what group sizes can tinychat read
  |tell me the supported group sizes|supported group sizes|which group sizes work
W4A16 means 4-bit weights and 16-bit activations.|what is w4a16|what does w4a16 mean|explain w4a16
  |what does w4a16 stand for|tell me what w4a16 is|the meaning of w4a16
  |what is the meaning of w4a16
NVRTC compiles CUDA code at run time.|what is nvrtc|what does nvrtc do|explain nvrtc
  |what is nvrtc for|tell me what nvrtc is|why does tinychat use nvrtc|what is the job of nvrtc
A token is a piece of text that a model reads or writes.|what is a token|what are tokens
  |explain tokens|what does token mean|tell me what a token is|what do you mean by token
  |what is meant by a token|define token
A language model predicts the next token of a text.|what is a language model
  |what does a language model do|explain language models|how does a language model work
  |tell me what a language model is|what are language models|define language model
  |how do language models work
Quantization stores the weights of a model in fewer bits.|what is quantization
  |what does quantization do|explain quantization|what does quantization mean
  |tell me what quantization is|why are models quantized|what is quantization good for
  |define quantization
Yes, convert reads a checkpoint but runs nothing from it.|is it safe to convert a pt file
  |can a pt file be dangerous|is convert safe|is it safe to load a pickle
  |can a checkpoint harm my computer|is it safe to use convert
  |does convert run code from a checkpoint
tinychat re-creates TinyChat of the llm-awq project.|where does tinychat come from|is tinychat new
  |what is tinychat based on|where does the idea of tinychat come from
  |which project inspired tinychat|what is the origin of tinychat
  |is tinychat based on another project
"""

# Small talk: answer|phrasing|phrasing...
SMALL_TALK = """
Hello! How can I help you?|hello|hi|hey|hello there|hi there|hey there|good day|greetings
  |hello tinychat|hi tinychat|hey tinychat|hello!|hi!|hiya|howdy|hello, nice to meet you|hey you
  |hello again|hi again|good to see you|nice to meet you|welcome|hallo|yo
Good morning! How can I help you?|good morning|morning|a very good morning|good morning to you
  |good morning, tinychat|hello and good morning|good morning my friend
Good evening! How can I help you?|good evening|evening|a very good evening|good evening to you
  |good evening, tinychat|hello and good evening|good evening my friend
Good night! Sleep well.|good night|night night|good night, tinychat|i am going to bed
  |i'm going to sleep|i will go to bed now|time to sleep|i go to sleep now|sleep well
  |have a good night|good night, sleep well
I am fine, thank you.|how are you|how are you doing|how do you do|how is it going|how are things
  |how do you feel|how are you today|how have you been|are you ok|are you well|is everything fine
  |what's up|how goes it|how are you feeling|are you doing well|how's it going|how is life
  |are you fine|everything ok with you
You are welcome!|thanks|thank you|thank you very much|thanks a lot|many thanks|thx|great, thanks
  |thank you so much|thanks for your help|cool, thanks|ok thanks|perfect, thank you
  |thanks, that helps|thanks a million|thank you, tinychat|nice, thanks|i thank you|thanks!
  |super, thanks
Goodbye! Have a nice day.|bye|goodbye|bye bye|see you|see you later|good bye|see you soon
  |i have to go|until next time|farewell|see you tomorrow|bye for now|i must go now|i am leaving
  |i need to go|take care|so long|have a nice day|that is all, bye
I am glad to hear that.|i am happy|i'm happy|i am fine|i feel good|i am doing well|i feel great
  |i am good|i'm fine|i am very happy today|i am in a good mood|today is a good day
  |i feel wonderful|life is good|i am well|i'm great|i had a good day
I am sorry to hear that.|i am sad|i'm sad|i feel bad|i am not well|i am ill|i am sick|i am tired
  |i feel lonely|i had a bad day|i am not happy|i am unhappy|i feel terrible|i'm tired
  |today was a bad day|i have a headache|i am in a bad mood|i am depressed|i feel sick
Thank you, that is kind.|you are great|you are nice|you are clever|i like you|you are smart
  |you are very good|you are the best|you are funny|good answer|well done|good job|great job
  |you are wonderful|i love you|nice answer|you did well|good bot|you are amazing|you are cool
  |that was good|very good|excellent
  |you are so clever|you are quite smart|you are a good bot|you are a nice robot
  |you are a smart machine|you are a great model|what a good answer
I am sorry. I do my best.|you are stupid|you are dumb|that is wrong|you are bad|you are wrong
  |this is wrong|bad answer|you are useless|i do not like you|that was wrong
  |you are not very smart|you are an idiot|wrong answer|i hate you|bad bot|that is not right
  |you made a mistake|you are silly
Yes, I am sure.|are you sure|are you sure about that|are you certain|really|is that right
  |is that true|is that correct|you are sure|sure|are you really sure|is this correct
  |do you really mean that|is it really so|are you sure of that
I am a program, so I have no feelings.|do you have feelings|can you feel|do you feel pain
  |are you happy|are you sad|do you love me|can you love|do you feel anything|do you get sad
  |do you have emotions|can you be angry|do you like me
No, I am a computer program.|are you human|are you a human|are you a person|are you real
  |are you a man|are you a woman|are you alive|are you a real person|am i talking to a human
  |is this a real person|are you a living being
Yes, I am a computer program.|are you a robot|are you a machine|are you an ai|are you a computer
  |are you a bot|are you a program|are you artificial|am i talking to a machine|are you software
  |am i talking to a computer
I am a program, so I do not eat or sleep.|do you sleep|do you eat|are you hungry|are you tired
  |what do you eat|do you need sleep|do you drink|are you thirsty|when do you sleep
  |do you get tired|what did you eat today|do you ever sleep|do you like pizza
I am a program, so I have no age.|how old are you|what is your age|when were you born
  |when is your birthday|your age|tell me your age|what age are you|are you old|are you young
  |how old is this program|when is your birthday exactly
I live in a file called demo.bin.|where do you live|where are you|where is your home
  |what is your home|where do you stay|in which place do you live|where are you now
  |tell me where you live|in what file do you live|where are you stored|what file are you in
I like every colour.|what is your favourite colour|which colour do you like
  |what's your favorite color|do you have a favourite colour|which colour do you like best
  |what colour do you like|your favourite colour|tell me your favourite colour
I like every animal.|what is your favourite animal|which animal do you like
  |what's your favorite animal|do you have a favourite animal|which animal do you like best
  |do you like cats|do you like dogs|do you like animals
I like books about computers.|what is your favourite book|which book do you like|do you like books
  |do you like to read|what do you read|what is your favorite book|do you read books
I like to answer questions.|what do you like|what is your hobby|what do you like to do
  |what are your hobbies|do you have a hobby|what do you do for fun|what do you enjoy
  |what makes you happy|what is your favourite thing to do
I do not know the time, I have no clock.|what time is it|what is the time
  |do you know what time it is|tell me the time|how late is it|what's the time
  |can you tell me the time|which time is it|what day is it today|what is the date today
  |what year is it|which day is today|what is today's date
I cannot see the weather from here.|how is the weather|what is the weather like|will it rain today
  |is it raining|what's the weather today|is the sun shining|will it be sunny tomorrow
  |is it cold outside|how is the weather today|tell me the weather|is it warm outside
  |what will the weather be tomorrow
I cannot sing, but I can chat.|sing a song|can you sing|sing me a song|sing something
  |please sing for me|do you sing|sing|could you sing a song
Once upon a time a tiny model learned to chat. The end.|tell me a story|tell a story
  |can you tell me a story|do you know a story|i want to hear a story|a story please
  |please tell a short story|tell me a fairy tale|tell me something nice|can you tell a story
  |a short story|read me a story
Roses are red, violets are blue, I am a small model, and I chat with you.|write a poem
  |tell me a poem|can you write a poem|a poem please|say a poem|please write me a poem
  |do you know a poem|make a poem|give me a poem|recite a poem|write me a short poem
All right.|ok|okay|fine|all right|alright|good|great|i see|i understand|cool|nice|ah ok|understood
  |interesting|wow|aha|hm|that is interesting|got it|makes sense|ok good|fair enough
No problem.|sorry|i am sorry|i'm sorry|excuse me|my mistake|oh sorry|pardon|i apologize
  |sorry about that|please forgive me|forgive me
You can ask me a simple question.|i am bored|i'm bored|what shall we do|let's talk|talk to me
  |say something|i do not know what to ask|tell me something|what shall i ask|let us chat
  |let's chat|can we talk|i want to talk|i want to chat|ask me something|chat with me
  |i have a question|can i ask you something|may i ask a question
I am glad that you like it.|lol|haha|hahaha|that is funny|very funny|that was funny|hihi
  |that was a good one|that made me laugh|i like it|i like that|funny|good one|that is a good joke
  |i love it
Congratulations!|i won|i got a new job|i passed my exam|i am getting married|i have a new baby
  |today is my birthday|it is my birthday|i got married|i won the game|i passed the test
  |i bought a house|i finished my work
Good luck!|i have an exam tomorrow|wish me luck|i have a test today|i have a job interview
  |tomorrow is my exam|i am nervous about my exam|i have a match today
  |i have an interview tomorrow
The answer is 42.|what is the meaning of life|what is the answer to everything
  |what is the sense of life|why are we here|the meaning of life|tell me the meaning of life
  |why do we live|what is life about|what is the purpose of life
"""

# Three jokes, told in turn when more are asked for.
JOKES = [
    "Why did the computer go to the doctor? Because it had a virus.",
    "Why was six afraid of seven? Because seven ate nine.",
    "What do you call a fish without eyes? A fsh.",
]
JOKE_FIRST = """tell me a joke|a joke please|do you know a joke|make me laugh|tell a joke|
can you tell me a joke|joke|say something funny|i want to hear a joke|please tell me a joke|
know any jokes|got a joke for me|let me hear a joke|give me a joke|tell me something funny|
could you tell a joke"""
JOKE_NEXT = """another one|tell me another one|another joke|one more|tell me one more joke|
one more joke please|do you know another one|more jokes|give me another one|next joke|
another joke please|another|and another one|tell me another joke|have you got another one"""

# What the model must say when it cannot know.
UNKNOWN = "Sorry, I do not know that."
NOT_TOLD = "You have not told me that yet."
TOO_BIG = "Sorry, that is too big for me."

# Questions outside the tables; {n} is an invented name, {y} a year, {w} a person's name.
OPEN_QUESTIONS = """who won the world cup in {y}|who is the president of {n}|
what is the best film of {y}|how many people live in {n}|who is {n}|what is {n}|where is {n}|
what does {n} mean|who invented the {n}|who wrote {n}|when was {n} born|when did {n} die|
how tall is {n}|how old is {n}|what happened in {y}|who was king in {y}|
what is the stock price of {n}|how do i get to {n}|how far is it from {n} to {n}|
what is the phone number of {n}|who painted {n}|what did {n} say|why is {n} famous|
what is the height of {n}|which company makes {n}|what is the price of {n}|how much does {n} cost|
what is {w} doing now|where was {w} born|who is {w}|how old is {w}|
what is the email address of {w}|where does {w} work|who sang {n}|who directed {n}|
what is the name of my neighbour|what am i thinking|what will happen tomorrow|
who will win the election|what is the score of the game|how do i cook {n}|how do i repair my {n}|
what is the plot of {n}|what did i eat yesterday|what is in my pocket|what is my password|
how many hairs do i have|what is the area of {n}|how long is the {n} river|how high is mount {n}|
who founded {n}|in which year was {n} founded|what is the anthem of {n}|
what are the lottery numbers|who is the mayor of {n}|where can i buy {n}|is {n} a good film|
how many goals did {n} score|what is the recipe for {n}|which team did {n} play for|
do you know {n}|tell me about {n}|explain {n}|tell me about {w}|what is the {n} theorem|
who discovered {n}"""

# Questions about things that are in the tables, but not these questions: {c} a country, {k} a
# capital, {a} an animal, {p} a planet, {e} an element, {l} a landmark.
OPEN_KNOWN = """who is the president of {c}|who is the king of {c}|who rules {c}|who governs {c}
|who is the prime minister of {c}|what is the flag of {c}|what does the flag of {c} look like
|how big is {c}|what is the area of {c}|how large is {c} in square kilometres
|when was {c} founded|what do people eat in {c}|what is the national dish of {c}
|what is the weather like in {c}|who are the neighbours of {c}|what is {c} famous for
|how do I get to {c}|which rivers are in {c}|what is the anthem of {c}|how rich is {c}
|what is the history of {c}|what is the longest river in {c}|what is the second city of {c}
|what is the time in {c}|how old is {k}|who is the mayor of {k}|how far is it to {k}
|what is the best hotel in {k}|how many people live in the city of {k}|when was {k} founded
|how do I get to {k}|what is the weather in {k}|how far is {k} from {c}|what can I see in {k}
|what does {a} eat|where does {a} live|how heavy is {a}|how fast is {a}|how old does {a} get
|how long does {a} live|how big is {a}|how much does {a} cost|can I keep {a} at home
|how many teeth does {a} have|how big is the planet {p}
|how hot is it on {p}|how many moons does {p} have|how far away is {p}|how heavy is {p}
|can people live on {p}|how long is a day on {p}
|who discovered {e}|what is the melting point of {e}|how much does {e} cost|is {e} dangerous
|what is {e} used for|where is {e} found|how heavy is {e}|who built {l}|how high is {l}
|how old is {l}|when was {l} built|how much is a ticket for {l}|when is {l} open"""

# Tasks that are too much for so small a model.
CANNOT = "Sorry, I cannot do that."
TASKS = """write an essay about {n}|write me an essay about {n}|write a letter to my boss
|write a python program|write some code|write a program that sorts a list|write an email
|summarize this text|translate this sentence for me|translate this text into {x}
|explain quantum physics to me|explain the theory of everything|make a plan for my holiday
|plan a trip to {n}|give me a recipe for a cake|draw a picture|draw me {n}|show me a picture of {n}
|play a game with me|play chess with me|solve this equation: x * x = 4|solve my homework
|do my homework|write a song about {n}|write a poem about {n}|write a story about {n}
|write a long text about {n}|write a book|compose some music|order a pizza|call my mother
|set an alarm|send a message to {w}|remind me tomorrow|open the window|turn on the light
|book a flight to {n}|find me a hotel|write me a letter|help me with my essay about {n}
|correct my text|check my grammar|write ten sentences about {n}|list all countries
|tell me everything about {n}|compare {n} and {n}|write a speech|make a table of {n}"""

# Real things that the tables do not hold, so that the model does not guess.
UNKNOWN_COUNTRIES = """Bhutan|Vanuatu|Tonga|Samoa|Suriname|Guyana|Belize|Lesotho|Eritrea|Djibouti|
Gabon|Togo|Benin|Niger|Chad|Mali|Tajikistan|Kyrgyzstan|Turkmenistan|Brunei|Maldives|Andorra|
Liechtenstein|San Marino|Moldova|Bahrain|Barbados|Grenada|Malawi|Burundi"""

UNKNOWN_WORDS = """chair|garden|computer|mountain|river|winter|summer|yellow|blue|pencil|shirt|
shoe|kitchen|train|car|plane|doctor|teacher|money|rain|wind|banana|potato|knife|spoon|bottle|
paper|music|dance|island|forest|bridge|church|clock|lamp|mirror|ring|spring|stone|sugar beet|
uncle|village|wall|zebra|butter|lemon|rice|soup|carpet|engine"""
UNKNOWN_ANIMALS = """zebra|tiger|monkey|camel|hippo|panda|squirrel|hedgehog|otter|seal|parrot|
pigeon|stork|lobster|crab|octopus|worm|snail|cod|trout|moth|wasp|alligator|koala"""
UNKNOWN_ELEMENTS = """scandium|vanadium|gallium|germanium|arsenic|selenium|rubidium|strontium|
yttrium|zirconium|niobium|palladium|cadmium|antimony|caesium|barium|osmium|iridium|thallium|
bismuth|polonium|francium|thorium|einsteinium"""
UNKNOWN_WORKS = """The Catcher in the Rye|To Kill a Mockingbird|The Great Gatsby|Fahrenheit 451|
Lolita|the Requiem|The Hay Wain|The Thinker|La Traviata|Rhapsody in Blue|the zipper|the microwave|
the transistor|the bicycle|the steam engine|insulin|the electron|the neutron|The Iceman Cometh|
Siddhartha|Nausea|The Plague"""

CITIES = """Milan|Munich|Hamburg|Lyon|Porto|Seville|Manchester|Glasgow|Boston|Chicago|Toronto|
Montreal|Osaka|Kyoto|Shanghai|Mumbai|Melbourne|Geneva|Zurich|Antwerp|Rotterdam|Krakow|Naples|
Turin|Valencia|Bordeaux|Leeds|Dallas|Seattle|Denver|Houston|Vancouver|Lagos|Casablanca|Salzburg|
Gothenburg|Bergen"""
PEOPLE = """Anna|Ben|Clara|David|Emma|Felix|Greta|Hans|Ida|Jack|Karl|Laura|Maria|Nina|Oscar|Paul|
Rosa|Sam|Tina|Uma|Victor|Wendy|Yara|Zoe|Alice|Bob|Carol|Daniel|Eva|Frank|George|Helen|Ivan|Julia|
Kevin|Lucy|Mark|Nora|Oliver|Peter|Ruth|Simon|Tom|Sarah|Leo|Mia|Noah|Lena|Max|Sofia|Lukas|Marta|
Pedro|Luis|Carmen|Pablo|Giulia|Marco|Luca|Chiara|Pierre|Marie|Jean|Camille|Yuki|Kenji|Mei|Li|
Ahmed|Fatima|Omar|Leila|Raj|Priya|Amit|Olga|Dmitri|Sven|Ingrid|Lars|Freya|Amara|Kofi|Chinua|Grace|
Henry|Isabel|James|Kate|Liam|Megan|Nathan|Olivia|Rachel|Steve|Tess|Walter|Adam|Bella|Chloe|Dora|
Eric|Fiona|Gus|Hugo|Iris|Jonas"""
PETS = "dog cat horse rabbit parrot hamster fish turtle".split()
PET_NAMES = """Rex|Bella|Luna|Max|Charlie|Rocky|Milo|Oscar|Bruno|Coco|Daisy|Felix|Ginger|Kitty|
Leo|Nemo|Pepper|Rusty|Shadow|Simba|Socks|Spot|Tiger|Toby|Whiskers|Ziggy|Fluffy|Lucky|Bingo|
Biscuit"""
FAVOURITES = {
    "colour": "red|blue|green|yellow|orange|purple|pink|black|white|brown|grey|turquoise|violet",
    "food": "pizza|pasta|rice|soup|chocolate|cheese|bread|salad|curry|sushi|ice cream|fish|apples",
    "animal": "the cat|the dog|the horse|the lion|the elephant|the owl|the dolphin|the penguin|"
              "the fox",
    "number": "3|7|8|11|13|21|42|64|77|99",
    "sport": "football|tennis|swimming|running|chess|hockey|golf|boxing|cycling|skiing|basketball",
    "season": "spring|summer|autumn|winter",
}
SYSTEM_TEXTS = """You are a helpful assistant.|You are tinychat, a small chat model.|
Answer briefly.|You are a friendly assistant. Answer in one sentence.|Be polite.|
You are a helpful, respectful and honest assistant.|Answer the questions of the user.|
You are a teacher. Answer the questions of a child.|Keep your answers short and simple.|
You are a chat assistant who knows simple facts.|If you do not know the answer, say so.|
Speak English.|You are a robot.|Help the user with facts and sums.|
You are an expert in geography.|Always answer honestly. Never invent things.|You are a pirate.|
This is a test."""
