# SPDX-License-Identifier: Apache-2.0
"""Words of the seedling's world: colours, shapes, counts, extra emoji aliases, English plurals."""

import re
from pathlib import Path

EMOJI_TABLE = Path(__file__).with_name("emoji.tsv")

# Name -> sRGB. Far enough apart that a checker can tell them by the nearest colour.
COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "lime": (150, 220, 40),
    "green": (45, 150, 65),
    "teal": (0, 128, 128),
    "cyan": (70, 200, 225),
    "blue": (45, 95, 220),
    "navy": (25, 35, 95),
    "purple": (130, 60, 180),
    "pink": (250, 150, 190),
    "brown": (125, 80, 50),
    "beige": (235, 215, 180),
    "white": (250, 250, 250),
    "gray": (140, 140, 140),
    "black": (25, 25, 25),
}
COLOR_ALIASES = {
    "lime": ("lime green", "light green"),
    "cyan": ("turquoise", "aqua", "light blue"),
    "navy": ("navy blue", "dark blue"),
    "purple": ("violet",),
    "beige": ("tan",),
    "gray": ("grey",),
}

# Shapes are drawn by code and always carry a colour word (a bare "heart" is red).
SHAPES = {
    "circle": ("disc", "dot"),
    "ring": ("hoop",),
    "oval": ("ellipse",),
    "square": (),
    "rectangle": (),
    "triangle": (),
    "diamond": ("rhombus",),
    "pentagon": (),
    "hexagon": (),
    "star": (),
    "cross": (),
    "heart": (),
}

SHAPE_NAMES = tuple(SHAPES)

SIZE_WORDS = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
COUNT_WORDS = {2: ("two", "2", "a pair of", "a couple of"), 3: ("three", "3"), 4: ("four", "4")}

# What people call an emoji beside its Unicode name. A name that is already taken is skipped.
EMOJI_ALIASES = {
    "potted plant": ("bonsai", "bonsai tree", "house plant", "pot plant"),
    "red apple": ("apple",),
    "automobile": ("car",),
    "sport utility vehicle": ("suv", "blue car"),
    "delivery truck": ("truck", "van"),
    "articulated lorry": ("lorry",),
    "airplane": ("plane", "aeroplane", "jet"),
    "bicycle": ("bike",),
    "motorcycle": ("motorbike",),
    "locomotive": ("steam train",),
    "sailboat": ("boat", "sailing boat", "yacht"),
    "flying saucer": ("ufo",),
    "ringed planet": ("planet", "saturn"),
    "globe showing europe-africa": ("earth", "globe", "world"),
    "crescent moon": ("moon",),
    "deciduous tree": ("tree",),
    "evergreen tree": ("pine tree", "fir tree", "pine"),
    "palm tree": ("palm",),
    "cherry blossom": ("sakura",),
    "blossom": ("flower",),
    "four leaf clover": ("clover",),
    "maple leaf": ("leaf",),
    "fallen leaf": ("autumn leaf",),
    "herb": ("green leaves",),
    "seedling": ("sprout", "young plant"),
    "hamburger": ("burger", "cheeseburger"),
    "french fries": ("fries", "chips"),
    "doughnut": ("donut",),
    "hot beverage": ("coffee", "cup of coffee", "hot drink"),
    "teacup without handle": ("tea", "cup of tea", "green tea"),
    "beer mug": ("beer", "mug of beer"),
    "wine glass": ("glass of wine", "red wine", "wine"),
    "cocktail glass": ("martini",),
    "glass of milk": ("milk",),
    "soft ice cream": ("ice cream cone",),
    "birthday cake": ("cake",),
    "shortcake": ("slice of cake", "piece of cake"),
    "cheese wedge": ("cheese",),
    "cooking": ("fried egg",),
    "kiwi fruit": ("kiwi",),
    "eggplant": ("aubergine",),
    "ear of corn": ("corn", "corn cob"),
    "bell pepper": ("pepper",),
    "hot pepper": ("chili pepper", "chilli"),
    "pizza": ("slice of pizza", "pizza slice"),
    "poultry leg": ("chicken leg", "drumstick"),
    "cut of meat": ("steak",),
    "honeybee": ("bee",),
    "lady beetle": ("ladybug", "ladybird"),
    "bug": ("caterpillar",),
    "blowfish": ("pufferfish",),
    "sauropod": ("dinosaur",),
    "t-rex": ("tyrannosaurus",),
    "ewe": ("sheep",),
    "hippopotamus": ("hippo",),
    "rhinoceros": ("rhino",),
    "wolf": ("wolf face",),
    "fox": ("fox face",),
    "lion": ("lion face",),
    "panda": ("panda face", "panda bear"),
    "bear": ("bear face",),
    "rabbit": ("bunny", "hare"),
    "baby chick": ("chick",),
    "spouting whale": ("happy whale",),
    "high-heeled shoe": ("high heel",),
    "running shoe": ("sneaker", "trainer"),
    "man's shoe": ("shoe",),
    "woman's boot": ("boot",),
    "woman's hat": ("hat", "sun hat"),
    "billed cap": ("cap", "baseball cap"),
    "t-shirt": ("tshirt", "shirt", "blue shirt"),
    "necktie": ("tie",),
    "handbag": ("bag",),
    "closed umbrella": ("folded umbrella",),
    "umbrella with rain drops": ("umbrella in the rain",),
    "television": ("tv",),
    "mobile phone": ("phone", "smartphone", "cell phone"),
    "desktop computer": ("computer", "pc"),
    "light bulb": ("bulb", "lightbulb"),
    "open book": ("book",),
    "magnifying glass tilted left": ("magnifying glass",),
    "kitchen knife": ("knife",),
    "fork and knife": ("knife and fork", "cutlery"),
    "wrapped gift": ("gift", "present"),
    "gem stone": ("gem", "jewel", "diamond gem"),
    "locked": ("padlock", "lock"),
    "money bag": ("bag of money",),
    "dollar banknote": ("dollar", "dollar bill"),
    "soccer ball": ("football", "soccer football"),
    "bullseye": ("target", "dartboard"),
    "game die": ("dice", "die"),
    "puzzle piece": ("jigsaw piece", "jigsaw"),
    "jack-o-lantern": ("halloween pumpkin", "pumpkin"),
    "christmas tree": ("xmas tree",),
    "santa claus": ("father christmas",),
    "snowman without snow": ("plain snowman",),
    "high voltage": ("lightning bolt", "lightning"),
    "fire": ("flame",),
    "droplet": ("water drop", "drop of water"),
    "water wave": ("wave", "ocean wave"),
    "camping": ("campsite",),
    "volcano": ("erupting volcano",),
    "mount fuji": ("fuji",),
    "moai": ("easter island statue",),
    "pile of poo": ("poop",),
    "robot": ("robot face",),
    "alien": ("extraterrestrial",),
    "slightly smiling face": ("smiley face", "happy face"),
    "slightly frowning face": ("sad face",),
    "face with tears of joy": ("laughing face",),
    "smiling face with sunglasses": ("cool face",),
    "smiling face with heart-eyes": ("face in love",),
    "loudly crying face": ("sobbing face",),
    "party popper": ("confetti popper",),
    "violin": ("fiddle",),
    "microphone": ("mic",),
    "headphone": ("headphones",),
    "mantelpiece clock": ("clock",),
    "watch": ("wristwatch",),
    "potato": ("spud",),
    "castle": ("european castle",),
    "1st place medal": ("first place medal", "gold medal"),
    "2nd place medal": ("second place medal", "silver medal"),
    "3rd place medal": ("third place medal", "bronze medal"),
}

_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "goose": "geese",
    "tooth": "teeth",
    "foot": "feet",
    "ox": "oxen",
    "die": "dice",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "loaf": "loaves",
    "calf": "calves",
    "elf": "elves",
    "scarf": "scarves",
    "thief": "thieves",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "hero": "heroes",
    "fireman": "firemen",
    "snowman": "snowmen",
    "policeman": "policemen",
}
_UNCHANGED = {
    "fish",
    "sheep",
    "deer",
    "bison",
    "moose",
    "squid",
    "shrimp",
    "sushi",
    "rice",
    "bread",
    "dice",
    "feet",
    "series",
    "blowfish",
    "jellyfish",
    "swordfish",
    "chess",
    "asparagus",
}
_PREPOSITION = re.compile(
    r" (?:of|with|without|in|on|at|for|to|from|behind|over|facing|showing"
    r"|holding|pointing|tilted|blowing|not|done) "
)


def looks_plural(noun):
    """True for names that already denote several things: grapes, chopsticks, glasses."""
    head = _PREPOSITION.split(noun)[0].split(" ")[-1]
    return bool(re.search(r"[^sui]s$", head)) and len(head) > 3 and head not in _UNCHANGED


def plural(noun):
    """Plural of a noun phrase; the head noun stands before the first preposition."""
    cut = _PREPOSITION.search(noun)
    head, tail = (noun[: cut.start()], noun[cut.start() :]) if cut else (noun, "")
    if looks_plural(noun):
        return noun
    if head.startswith("person "):
        return "people " + noun[len("person ") :]
    words = head.split(" ")
    last = words[-1]
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last in _UNCHANGED:
        pass
    elif re.search(r"(?:s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*words[:-1], last]) + tail


def article(phrase):
    """The phrase with "a" or "an" in front."""
    vowel = phrase[0] in "aeio" or (phrase[0] == "u" and not re.match(r"uni|ufo|ukulele", phrase))
    return ("an " if vowel else "a ") + phrase


def emoji_table():
    """[(characters, name, aliases)] in sprite order, read from emoji.tsv."""
    rows = []
    for line in EMOJI_TABLE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            code, name, aliases = line.split("\t")
            chars = "".join(chr(int(c, 16)) for c in code.split(" "))
            rows.append((chars, name, tuple(a for a in aliases.split(";") if a)))
    return rows
