"""Generates the conversations that the demo model is trained on.

A conversation is a list of (question, answer) turns. Questions are put together from the tables of
facts.py, the ways of asking below, and small disturbances (case, punctuation, typing errors);
answers are always the one canonical sentence. `Dialogues(seed, held_out)` is deterministic.

Held-out questions never occur here: neither their normalised text, nor (except for sums, where the
operands are what is held out) their pattern, which is the text with every name and number masked.
"""

import random
import re

import facts as F

# --------------------------------------------------------------------------- ways of asking

# A question about a noun phrase {p}, such as "the capital of France".
NP_FRAMES = (
    "what is {p}|what is {p}|what is {p}|what's {p}|what's {p}|{p}|{p}|tell me {p}|"
    "tell me {p}, please|please tell me {p}|give me {p}|name {p}|do you know {p}|"
    "can you tell me {p}|could you tell me {p}|could you please tell me {p}|"
    "would you tell me {p}|will you tell me {p}|I want to know {p}|I would like to know {p}|"
    "I'd like to know {p}|I need to know {p}|I need {p}|could you give me {p}|"
    "can you give me {p}|{p}, please|do you happen to know {p}|can you name {p}|"
    "could you name {p}|I wonder what {p} is|please say what {p} is|tell me what {p} is|"
    "do you know what {p} is|can you say what {p} is|can you tell me what {p} is|"
    "could you tell me what {p} is|any idea what {p} is|do you have any idea what {p} is|"
    "I forgot {p}|I forgot what {p} is|remind me what {p} is|remind me of {p}|"
    "what was {p} again|what would {p} be|what might {p} be|what could {p} be|"
    "what do you think {p} is|let me know {p}|let me know what {p} is|I am looking for {p}|"
    "I'm trying to remember {p}|help me find {p}|find {p}|give {p}|say {p}|state {p}|"
    "I don't know {p}|I do not know what {p} is|explain what {p} is|{p} is what|{p} is|"
    "I would like you to tell me {p}|I want you to tell me {p}|are you able to tell me {p}|"
    "is it possible to tell me {p}|write {p}|write down {p}|my question is: what is {p}|"
    "the question is: what is {p}|what exactly is {p}|and what is {p}|what then is {p}|"
    "may I know {p}|may I ask what {p} is|can I ask what {p} is|can you find {p}|"
    "do you remember {p}|do you remember what {p} is|show me {p}|please give me {p}|"
    "please name {p}|I need you to tell me {p}|we want to know {p}|"
    "somebody asked me what {p} is|my teacher asked for {p}|they asked me for {p}").split("|")

# An indirect question {p}, such as "where the Louvre is".
CLAUSE_FRAMES = (
    "tell me {p}|tell me {p}|please tell me {p}|do you know {p}|do you know {p}|"
    "can you tell me {p}|can you tell me {p}|could you tell me {p}|"
    "could you please tell me {p}|would you tell me {p}|will you tell me {p}|"
    "I want to know {p}|I would like to know {p}|I'd like to know {p}|I need to know {p}|"
    "I wonder {p}|can you say {p}|please say {p}|could you say {p}|any idea {p}|"
    "do you have any idea {p}|have you any idea {p}|I forgot {p}|remind me {p}|let me know {p}|"
    "explain {p}|can you explain {p}|do you remember {p}|I do not know {p}|I don't know {p}|"
    "I am not sure {p}|may I ask {p}|can I ask {p}|I want you to tell me {p}|"
    "I would like you to tell me {p}|are you able to tell me {p}|I am wondering {p}|say {p}|"
    "state {p}|help me find out {p}|find out {p}|do you happen to know {p}|we want to know {p}|"
    "somebody asked me {p}|my teacher asked me {p}|they asked me {p}|I need you to tell me {p}|"
    "the question is {p}|my question is {p}|I'm trying to remember {p}|write down {p}|"
    "show me {p}").split("|")

PREFIXES = (
    "hey, |hi, |hello, |so, |ok, |well, |now, |quick question: |question: |a question: |"
    "one question: |next question: |another question: |tinychat, |now tell me: |"
    "I have a question: |please answer: |say, |tell me, |let me ask you: |I am curious: |"
    "excuse me, |sorry, |help me: |and now: |my question: |please, |just tell me: |"
    "here is a question: |what I want to know: |dear tinychat, |oh, |um, |hm, |all right, |"
    "one more question: |ok then, |good, |let me see: |a simple question: |listen, |"
    "by the way, ").split("|")
SUFFIXES = (
    ", please| please|, thanks|, thank you|, do you know|, can you tell me|, tell me|"
    ", tinychat|, if you know| exactly|, I forgot|, I wonder|, or do you not know|, any idea|"
    ", my friend|, quickly| again|, just curious|, right now").split("|")

# The same relation, another thing: {x}.
OTHER_FRAMES = (
    "and {x}|and {x}|and {x}|what about {x}|what about {x}|what about {x}|how about {x}|"
    "how about {x}|and what about {x}|and how about {x}|and for {x}|and of {x}|{x}|{x}, please|"
    "now {x}|now for {x}|then {x}|and now {x}|the same for {x}|same question for {x}|"
    "the same question for {x}|same for {x}|and the same for {x}|and {x} then|what of {x}|"
    "and that of {x}|next: {x}|next {x}|do {x} now|what about {x} then|and with {x}|"
    "and in the case of {x}|now the same for {x}|please do the same for {x}|also {x}|"
    "also for {x}|tell me for {x}|I also want to know it for {x}|can you tell me for {x} too|"
    "and {x} too|and {x}, please|{x} too|as for {x}|let us try {x}|I meant {x}|no, I meant {x}|"
    "sorry, I meant {x}|actually {x}|or {x}|ok, and {x}").split("|")

# Another relation of the same thing: a noun phrase {p} with "its" or "the".
SAME_FRAMES = (
    "and {p}|and {p}|and {p}|what about {p}|what about {p}|how about {p}|and what about {p}|"
    "and what is {p}|what is {p}|what's {p}|and what's {p}|tell me {p}|tell me {p} too|"
    "tell me also {p}|also {p}|{p}|{p} too|{p}, please|now {p}|and now {p}|and {p} too|"
    "also tell me {p}|I also want to know {p}|do you also know {p}|do you know {p}|"
    "and do you know {p}|can you tell me {p}|can you also tell me {p}|"
    "could you tell me {p} as well|what would be {p}|and {p} then|then tell me {p}|ok, and {p}|"
    "please tell me {p}|what is {p} then|next: {p}|now tell me {p}|give me {p}|"
    "give me {p} as well|I would also like to know {p}|and what would {p} be|name {p}|"
    "name {p} too").split("|")
SAME_DIRECT_PREFIXES = "||and |and |ok, and |also, |and then, |now, |so, ".split("|")

# Words that a question can do without, and words that it can carry along.
SMALL_WORDS = "the is a of do does what it can you that there are to please for".split()
FILLERS = ("please|now|exactly|really|actually|then|just|again|maybe|there|also|perhaps|so|well|ok|"
           "simply|quickly|here|today|still|for me|my friend|in fact|you know").split("|")


def alternatives(text):
    return [s.strip() for s in text.strip().split("|")]


class Relation:
    """One kind of fact: `answers` maps a thing to its sentence; {x} in the phrases is the thing."""

    def __init__(self, name, answers, np="", direct="", indirect="", group=None, its_np="",
                 its_direct="", forms=None, weight=None, unknown=None):
        self.name, self.answers, self.group = name, answers, group
        self.things = list(answers)
        self.np, self.direct, self.indirect = (
            alternatives(s) if s else [] for s in (np, direct, indirect))
        self.its_np, self.its_direct = (alternatives(s) if s else [] for s in (its_np, its_direct))
        self.forms = forms or {}
        self.weight = weight or len(self.things) ** 0.6
        self.unknown = unknown  # how to make up a thing that is not in the table

    def form(self, r, thing):
        return r.choice(self.forms.get(thing) or [thing])


def rows(table):
    """The cells of a table; a line that begins with a bar continues the row before."""
    table = re.sub(r"\n +\|", "|", table.strip())
    return [line.split("|") for line in table.split("\n")]


def cap(s):
    return s[:1].upper() + s[1:]


def with_article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


IRREGULAR = {"mouse": "mice", "goose": "geese", "wolf": "wolves", "sheep": "sheep", "deer": "deer",
             "fox": "foxes", "ostrich": "ostriches", "butterfly": "butterflies", "fly": "flies",
             "fish": "fish", "salmon": "salmon", "mosquito": "mosquitoes", "tuna": "tuna"}


def invented_name(r, parts=None):
    """A name that belongs to nothing in the tables."""
    starts = "b br c cr d dr f fl g gr h j k kl l m n p pl qu r s sk st t tr v w z zh".split()
    vowels = "a e i o u aa ei ou ia".split()
    ends = "n r s th l x m rk nd ndor via zan don mar bek ria stan land nia qua zor".split()
    n = parts or r.choice((1, 2, 2, 2, 3))
    return cap("".join(r.choice(starts) + r.choice(vowels) for _ in range(n)) + r.choice(ends))


def unknown(real, make=lambda name: name, share=0.3):
    """Makes up things that the tables do not hold: real ones, and invented names."""
    real = alternatives(real)
    return lambda r: make(r.choice(real) if r.random() < share else invented_name(r).lower())


def unknown_country(r):
    return r.choice(alternatives(F.UNKNOWN_COUNTRIES)) if r.random() < 0.2 else invented_name(r)


def unknown_element(r):
    if r.random() < 0.3:
        return r.choice(alternatives(F.UNKNOWN_ELEMENTS))
    return invented_name(r).lower() + "ium"


def unknown_work(r):
    if r.random() < 0.3:
        return r.choice(alternatives(F.UNKNOWN_WORKS))
    return r.choice(("The ", "the ", "")) + invented_name(r)


def unknown_translation(r):
    return unknown(F.UNKNOWN_WORDS)(r) + "|" + r.choice(F.LANGUAGES)


def country_relations():
    forms, sentence = {}, {}
    table = {c: {} for c in ("capital", "continent", "currency", "language", "population")}
    reverse = {}
    for names, capital, *rest in rows(F.COUNTRIES):
        names = names.split("=")
        name = names[0]
        forms[name] = [name] * 4 + names[1:] * 2 + [n[4:] for n in names if n[:4] == "the "]
        for column, value in zip(table, (capital, *rest)):
            if value != "-":
                table[column][name] = value
        if capital != "-":
            reverse[capital] = f"{capital} is the capital of {name}."
    make = dict(capital="The capital of {n} is {v}.", continent="{N} is in {v}.",
                currency="The currency of {n} is the {v}.",
                language="The main language of {n} is {v}.",
                population="The population of {n} is about {v}.")
    answers = {c: {n: make[c].format(n=n, N=cap(n), v=v) for n, v in t.items()}
               for c, t in table.items()}
    common = dict(group="country", forms=forms, unknown=unknown_country)
    return [
        Relation("capital", answers["capital"], **common, weight=26,
                 np="the capital of {x}|the capital of {x}|the capital of {x}|"
                    "the capital city of {x}|{x}'s capital|{x}'s capital city|"
                    "the name of the capital of {x}|the main city of {x}|"
                    "the seat of government of {x}",
                 direct="which city is the capital of {x}|what city is the capital of {x}|"
                        "which city is {x}'s capital|which capital does {x} have|"
                        "what capital does {x} have|{x} has which capital|"
                        "how is the capital of {x} called|what is the capital of {x} called|"
                        "which is the capital of {x}|what do you call the capital of {x}",
                 indirect="which city is the capital of {x}|what the capital of {x} is called|"
                          "which capital {x} has|what city is the capital of {x}|"
                          "how the capital of {x} is called",
                 its_np="its capital|the capital|its capital city|the capital city|"
                        "the capital of that country|the name of its capital|"
                        "the capital of this country|the capital there",
                 its_direct="what is the capital there|which city is its capital|"
                            "what is its capital called|which capital does it have|"
                            "which city is the capital"),
        Relation("continent", answers["continent"], **common, weight=14,
                 np="the continent of {x}|the continent where {x} is|"
                    "the continent that {x} belongs to|{x}'s continent",
                 direct="on which continent is {x}|which continent is {x} in|"
                        "what continent is {x} in|which continent is {x} on|"
                        "in which part of the world is {x}|which part of the world is {x} in|"
                        "what continent does {x} belong to|on what continent is {x}|"
                        "on which continent does {x} lie|where in the world is {x}|"
                        "{x} is on which continent|on which continent is {x} located|"
                        "where is {x}|to which continent does {x} belong|"
                        "on what continent do I find {x}",
                 indirect="which continent {x} is in|on which continent {x} is|"
                          "which continent {x} belongs to|in which part of the world {x} is|"
                          "where {x} is|what continent {x} is on|where in the world {x} lies",
                 its_np="its continent|the continent|the continent it is on|"
                        "the continent of that country|the continent it belongs to",
                 its_direct="on which continent is it|which continent is it in|"
                            "what continent is it on|which continent does it belong to|"
                            "where is it|in which part of the world is it|"
                            "where in the world is that|on which continent is that country|"
                            "on what continent does it lie"),
        Relation("currency", answers["currency"], **common, weight=18,
                 np="the currency of {x}|the currency of {x}|the currency in {x}|{x}'s currency|"
                    "the money of {x}|the money used in {x}|the currency used in {x}|"
                    "the name of the currency of {x}|the national currency of {x}",
                 direct="which currency does {x} use|what currency does {x} use|"
                        "which money do they use in {x}|what money is used in {x}|"
                        "what do people pay with in {x}|which currency is used in {x}|"
                        "which currency does {x} have|with which money do you pay in {x}|"
                        "how is the currency of {x} called|what is the money of {x} called|"
                        "what currency do they have in {x}|what kind of money do they use in {x}|"
                        "which currency do I need in {x}|in which currency do people pay in {x}|"
                        "what money do I need in {x}",
                 indirect="which currency {x} uses|what currency is used in {x}|"
                          "which money they use in {x}|what people pay with in {x}|"
                          "which currency {x} has|what the currency of {x} is called|"
                          "which money I need in {x}",
                 its_np="its currency|the currency|the currency there|the money there|its money|"
                        "the money they use|the currency of that country|its national currency",
                 its_direct="which currency does it use|what currency do they use there|"
                            "what do people pay with there|which money do they use|"
                            "which currency does it have|what money do they use there|"
                            "what money do I need there|how do people pay there"),
        Relation("language", answers["language"], **common, weight=16,
                 np="the language of {x}|the main language of {x}|the language spoken in {x}|"
                    "{x}'s language|the language they speak in {x}|the main language in {x}|"
                    "the official language of {x}|the language of the people in {x}",
                 direct="which language do they speak in {x}|what language do they speak in {x}|"
                        "what language is spoken in {x}|which language is spoken in {x}|"
                        "what do people speak in {x}|which language do people speak in {x}|"
                        "what is spoken in {x}|which language does {x} have|"
                        "what do they speak in {x}|in {x}, which language do people speak|"
                        "which language should I learn for {x}|"
                        "what language do people in {x} speak|which tongue do they speak in {x}",
                 indirect="which language they speak in {x}|what language is spoken in {x}|"
                          "which language people speak in {x}|what they speak in {x}|"
                          "what the main language of {x} is|which language is spoken in {x}",
                 its_np="its language|the language|its main language|the language there|"
                        "the main language there|the language they speak|"
                        "the language spoken there|its official language",
                 its_direct="which language do they speak there|what language do they speak|"
                            "what is spoken there|which language is spoken there|"
                            "what do people speak there|what language do people speak|"
                            "what language does one speak there"),
        Relation("population", answers["population"], **common, weight=16,
                 np="the population of {x}|the population of {x}|{x}'s population|"
                    "the number of people in {x}|the number of inhabitants of {x}|"
                    "the size of the population of {x}|the number of people who live in {x}",
                 direct="how many people live in {x}|how many people are there in {x}|"
                        "how many inhabitants does {x} have|how big is the population of {x}|"
                        "how large is the population of {x}|how many people does {x} have|"
                        "{x} has how many people|how many people live there in {x}|"
                        "how many live in {x}|what population does {x} have|"
                        "how many people has {x}",
                 indirect="how many people live in {x}|how many inhabitants {x} has|"
                          "how big the population of {x} is|how many people there are in {x}|"
                          "how many people {x} has|how large the population of {x} is",
                 its_np="its population|the population|the population there|"
                        "the number of people there|the number of inhabitants|"
                        "the population of that country|its number of inhabitants|"
                        "the size of its population",
                 its_direct="how many people live there|how many inhabitants does it have|"
                            "how big is its population|how many people are there|"
                            "how many people does it have|how large is the population|"
                            "how many live there"),
        Relation("about country",
                 {n: f"{cap(n)} is a country in {t}." for n, t in table["continent"].items()},
                 **common, weight=7,
                 direct="tell me about {x}|what is {x}|describe {x}|what do you know about {x}|"
                        "talk about {x}|what can you tell me about {x}|what kind of place is {x}|"
                        "give me some information about {x}|what sort of place is {x}|"
                        "do you know {x}|have you heard of {x}|is {x} a country|"
                        "what is {x}, a city or a country|I would like to hear about {x}"),
        Relation("capital-of", reverse, group="country", weight=12,
                 unknown=invented_name,
                 np="the country with the capital {x}|the country whose capital is {x}|"
                    "the country of which {x} is the capital",
                 direct="where is {x}|in which country is {x}|what is {x}|tell me about {x}|"
                        "what do you know about {x}|in what country is {x}|do you know {x}|"
                        "which country is {x} in|where is {x} located|where do I find {x}|"
                        "which country has the capital {x}|what country has {x} as its capital|"
                        "{x} is the capital of which country|of which country is {x} the capital|"
                        "what is {x} the capital of|{x} is the capital of what|"
                        "which country's capital is {x}|whose capital is {x}|"
                        "which country is {x} the capital of|{x} is which country's capital|"
                        "what country is {x} the capital of|the capital of which country is {x}",
                 indirect="which country has the capital {x}|of which country {x} is the capital|"
                          "what {x} is the capital of|which country {x} is the capital of|"
                          "whose capital {x} is"),
    ]


def element_relations():
    table = rows(F.ELEMENTS)
    return [
        Relation("symbol", {n: f"The chemical symbol of {n} is {s}." for n, s, _ in table},
                 group="element", unknown=unknown_element, weight=12,
                 np="the symbol of {x}|the chemical symbol of {x}|the symbol for {x}|"
                    "the chemical symbol for {x}|{x}'s symbol|{x}'s chemical symbol|"
                    "the symbol of the element {x}|the abbreviation for {x} in chemistry|"
                    "the short sign for {x}",
                 direct="which symbol does {x} have|what symbol does {x} have|"
                        "how is {x} written in chemistry|which symbol stands for {x}|"
                        "what is {x} in the periodic table|how is {x} abbreviated|"
                        "which letters stand for {x}|what symbol do chemists use for {x}|"
                        "how do chemists write {x}|which chemical symbol does {x} have",
                 indirect="which symbol {x} has|what symbol stands for {x}|"
                          "how {x} is written in chemistry|which letters stand for {x}|"
                          "what the symbol of {x} is",
                 its_np="its symbol|the symbol|its chemical symbol|the chemical symbol|"
                        "the symbol of it",
                 its_direct="which symbol does it have|what symbol does it have|"
                            "how is it written|how is it abbreviated"),
        Relation("atomic number", {n: f"The atomic number of {n} is {z}." for n, _, z in table},
                 group="element", unknown=unknown_element, weight=12,
                 np="the atomic number of {x}|the atomic number of {x}|{x}'s atomic number|"
                    "the number of {x} in the periodic table|the number of protons of {x}|"
                    "the number of protons in {x}|the atomic number of the element {x}",
                 direct="which atomic number does {x} have|what atomic number does {x} have|"
                        "how many protons does {x} have|"
                        "which number does {x} have in the periodic table|"
                        "what number is {x} in the periodic table|which number is {x}|"
                        "how many protons are in {x}|how many protons has {x}|"
                        "at which number is {x} in the periodic table",
                 indirect="which atomic number {x} has|how many protons {x} has|"
                          "what number {x} has in the periodic table|"
                          "how many protons there are in {x}",
                 its_np="its atomic number|the atomic number|its number|"
                        "its number in the periodic table|the number of protons|"
                        "its number of protons",
                 its_direct="which atomic number does it have|how many protons does it have|"
                            "what number does it have|which number is it|"
                            "what number is it in the periodic table"),
        Relation("about element", {n: f"{cap(n)} is a chemical element." for n, *_ in table
                                   if n != "mercury"}, group="element", weight=4,
                 direct="what is {x}|tell me about {x}|what do you know about {x}|describe {x}|"
                        "what kind of thing is {x}|what sort of stuff is {x}|is {x} an element|"
                        "do you know {x}|is {x} a chemical element|what can you tell me about {x}"),
        Relation("element by symbol", {s: f"{s} is the symbol of {n}." for n, s, _ in table},
                 group="element", weight=10,
                 np="the element with the symbol {x}|the element with the chemical symbol {x}|"
                    "the name of the element {x}|the element that has the symbol {x}",
                 direct="which element has the symbol {x}|what element has the symbol {x}|"
                        "what does the symbol {x} stand for|which element is {x}|"
                        "what element is {x}|what does {x} stand for in chemistry|"
                        "{x} is the symbol of which element|which element does {x} stand for|"
                        "what element is written {x}|which element is abbreviated {x}|"
                        "what is {x} in chemistry|{x} stands for which element",
                 indirect="which element has the symbol {x}|what {x} stands for in chemistry|"
                          "which element {x} is|what element {x} stands for"),
        Relation("element by number",
                 {z: f"The element with the atomic number {z} is {n}." for n, _, z in table},
                 group="element", weight=8,
                 np="the element with the atomic number {x}|the element with atomic number {x}|"
                    "element number {x}|the element number {x}|the element with {x} protons",
                 direct="which element has the atomic number {x}|"
                        "what element has atomic number {x}|which element has {x} protons|"
                        "which element is number {x} in the periodic table|"
                        "what element is number {x}|which element has number {x}|"
                        "what element has {x} protons",
                 indirect="which element has the atomic number {x}|which element is number {x}|"
                          "what element has {x} protons|which element has {x} protons"),
    ]


def animal_relations():
    table = rows(F.ANIMALS)
    forms = {n: [with_article(n)] * 3 + ["the " + n, n] for n, *_ in table}
    baby = {n: [n] for n, *_ in table}
    young_of = {}
    for n, _, y, *_ in table:
        young_of.setdefault(y, []).append(n)
    common = dict(group="animal", unknown=unknown(F.UNKNOWN_ANIMALS, with_article))
    return [
        Relation("animal class",
                 {n: f"{cap(with_article(n))} is {with_article(c)}." for n, c, *_ in table},
                 **common, forms=forms, weight=10,
                 np="the class of {x}|the animal class of {x}|the kind of animal that {x} is|"
                    "the group of animals of {x}",
                 direct="what is {x}|tell me about {x}|what do you know about {x}|describe {x}|"
                        "what kind of animal is {x}|what type of animal is {x}|"
                        "which kind of animal is {x}|which class of animals does {x} belong to|"
                        "what class of animal is {x}|to which class of animals does {x} belong|"
                        "what sort of animal is {x}|is {x} a mammal or a bird|"
                        "is {x} a mammal or something else|"
                        "which group of animals does {x} belong to|what kind of creature is {x}|"
                        "what kind of animals are {s}|what are {s}|what type of animals are {s}|"
                        "which class of animals do {s} belong to|what sort of animals are {s}|"
                        "to which class do {s} belong|to what group does {x} belong|"
                        "is {x} a fish or a mammal|is {x} an insect or a reptile",
                 indirect="what kind of animals {s} are|what {s} are|what kind of animal {x} is|"
                          "which class {x} belongs to|what type of animal {x} is|"
                          "what sort of animal {x} is|to which group {x} belongs",
                 its_np="its class|the class|its animal class|the kind of animal",
                 its_direct="what kind of animal is it|which class does it belong to|"
                            "what type of animal is that|what sort of animal is it|"
                            "is it a mammal or a bird|to which class does it belong"),
        Relation("young", {n: f"A baby {n} is called {with_article(y)}." for n, _, y, *_ in table
                           if y != "-"},
                 group="animal", forms=baby, weight=9,
                 np="the name of a baby {x}|the word for a baby {x}|the name for a young {x}|"
                    "the word for a young {x}|the young of the {x}|the baby of the {x}|"
                    "the name of the young of the {x}|the name for a baby {x}",
                 direct="what is a baby {x} called|what do you call a baby {x}|"
                        "what is a young {x} called|how is a baby {x} called|"
                        "what do we call a young {x}|what are baby {s} called|"
                        "what are young {s} called|what do you call baby {s}|"
                        "how do you call a baby {x}|what do people call a baby {x}|"
                        "which name has a baby {x}|what name does a baby {x} have|"
                        "what is the baby of the {x} called|what is the young of the {x} called|"
                        "how do you call the baby of a {x}",
                 indirect="what a baby {x} is called|what you call a young {x}|"
                          "how a baby {x} is called|what people call a baby {x}|"
                          "what a young {x} is called",
                 its_np="its young|its baby|the name of its baby|the name for its young|the baby|"
                        "the young",
                 its_direct="what is its baby called|what do you call its young|"
                            "what is its young called|how are its babies called|"
                            "what do you call the baby|what are its babies called"),
        Relation("sound", {n: f"{cap(with_article(n))} says {s}." for n, _, _, s, _ in table
                           if s != "-"},
                 **common, forms=forms, weight=9,
                 np="the sound of {x}|the noise of {x}|the sound that {x} makes|"
                    "the noise that {x} makes|the sound {x} makes|the cry of {x}",
                 direct="what sound does {x} make|which sound does {x} make|"
                        "what noise does {x} make|what does {x} say|how does {x} sound|"
                        "which noise does {x} make|how does {x} go|"
                        "what kind of sound does {x} make|what is the sound of {x}|"
                        "what do you hear from {x}|what sound do {s} make|what noise do {s} make|"
                        "what do {s} say|how do {s} sound|which sound do {s} make|"
                        "what sound comes from {x}",
                 indirect="what sound {s} make|what {s} say|what sound {x} makes|"
                          "which noise {x} makes|what {x} says|how {x} sounds|"
                          "what noise {x} makes|which sound {x} makes",
                 its_np="its sound|the sound|the noise it makes|the sound it makes|its noise|"
                        "its cry",
                 its_direct="what sound does it make|what does it say|what noise does it make|"
                            "how does it sound|which sound does it make"),
        Relation("legs", {n: f"{cap(with_article(n))} has {k} legs." for n, *_, k in table
                          if k != "-"},
                 **common, forms=forms, weight=9,
                 np="the number of legs of {x}|the number of legs that {x} has|"
                    "the number of legs on {x}|the leg count of {x}",
                 direct="how many legs does {x} have|how many legs has {x}|"
                        "how many legs are on {x}|{x} has how many legs|"
                        "how many legs can you count on {x}|how many legs do {s} have|"
                        "how many legs do {s} have|how many legs have {s}|{s} have how many legs|"
                        "on how many legs does {x} walk|how many legs do you find on {x}",
                 indirect="how many legs {s} have|how many legs {x} has|"
                          "how many legs there are on {x}|on how many legs {x} walks",
                 its_np="its number of legs|the number of legs|its legs|the number of its legs",
                 its_direct="how many legs does it have|how many legs has it|"
                            "how many legs does it have|on how many legs does it walk"),
        Relation("what young", {with_article(y): f"{cap(with_article(y))} is a baby {ns[0]}."
                                for y, ns in young_of.items() if y != "-" and len(ns) == 1},
                 group="animal", weight=5,
                 np="the animal that {x} becomes|the mother animal of {x}|"
                    "the meaning of the word {x}",
                 direct="what is {x}|which animal is {x}|of which animal is {x} the young|"
                        "what animal does {x} become|what does {x} grow into|"
                        "of which animal is {x} the baby|what kind of baby is {x}|"
                        "what will {x} become|which baby animal is {x}",
                 indirect="what {x} is|which animal {x} becomes|of which animal {x} is the young|"
                          "what {x} grows into"),
    ]


def cyclic_relations():
    after = ("|what comes after {x}|which {k} comes after {x}|what {k} comes after {x}|"
             "which {k} follows {x}|what {k} is after {x}|after {x} comes which {k}|"
             "what follows {x}|which {k} is next after {x}|{x} is followed by which {k}|"
             "what {k} follows {x}|which {k} comes next after {x}|what is next after {x}")
    before = ("|what comes before {x}|which {k} comes before {x}|what {k} comes before {x}|"
              "which {k} is before {x}|what {k} is before {x}|before {x} comes which {k}|"
              "which {k} precedes {x}|what was before {x}|{x} comes after which {k}|"
              "which {k} comes just before {x}|what {k} precedes {x}")
    kinds = (("day", F.DAYS, True), ("month", F.MONTHS, True),
             ("letter", [chr(65 + i) for i in range(26)], False))
    relations = []
    for kind, names, wraps in kinds:
        n = len(names)
        pairs = [(names[i], names[(i + 1) % n]) for i in range(n if wraps else n - 1)]
        for word, other, direct, ends in (("after", "next", after, pairs),
                                          ("before", "previous", before, [p[::-1] for p in pairs])):
            past = {"after": "follows", "before": "precedes"}[word]
            relations.append(Relation(
                f"{kind} {word}", {a: f"The {kind} {word} {a} is {b}." for a, b in ends},
                np=f"the {kind} {word} {{x}}|the {kind} {word} {{x}}|"
                   f"the {other} {kind} {word} {{x}}|the {kind} that comes {word} {{x}}|"
                   f"the {kind} right {word} {{x}}|the {kind} that {past} {{x}}",
                direct=direct[1:].replace("{k}", kind),
                indirect=f"which {kind} comes {word} {{x}}|what {kind} is {word} {{x}}|"
                         f"which {kind} {past} {{x}}|what comes {word} {{x}}",
                weight=5, group="cycle"))
    relations += [
        Relation("days of month", {m: f"{m} has {d} days." for m, d in zip(F.MONTHS, F.MONTH_DAYS)
                                   if d != "-"},
                 np="the number of days in {x}|the number of days of {x}|"
                    "the length of {x} in days|the length of the month {x}",
                 direct="how many days does {x} have|how many days are in {x}|"
                        "how many days are there in {x}|how many days has {x}|how long is {x}|"
                        "how long is the month {x}|{x} has how many days|"
                        "how many days long is {x}|how many days are there in the month of {x}|"
                        "does {x} have 30 or 31 days",
                 indirect="how many days {x} has|how many days there are in {x}|how long {x} is|"
                          "whether {x} has 30 or 31 days", weight=5),
        Relation("nth month", {o: f"The {o} month of the year is {m}."
                               for o, m in zip(F.ORDINALS, F.MONTHS)},
                 np="the {x} month|the {x} month of the year|the {x} month in a year|"
                    "the name of the {x} month|the month number {x}",
                 direct="which month is the {x}|which month comes {x}|"
                        "which month is the {x} of the year|what month is the {x} one|"
                        "which month is {x} in the year|what is the {x} month called",
                 indirect="which month is the {x}|what the {x} month is|which month comes {x}",
                 weight=5),
        Relation("nth day", {o: f"The {o} day of the week is {d}."
                             for o, d in zip(F.ORDINALS, F.DAYS)},
                 np="the {x} day of the week|the {x} day in a week|the {x} weekday|"
                    "the name of the {x} day of the week",
                 direct="which day is the {x} of the week|which day of the week comes {x}|"
                        "which day is the {x} day of the week|"
                        "what is the {x} day of the week called",
                 indirect="which day of the week is the {x}|what the {x} day of the week is|"
                          "which day of the week comes {x}", weight=4),
        Relation("nth planet", {o: f"The {o} planet from the Sun is {p}."
                                for o, p in zip(F.ORDINALS, F.PLANETS)}, group="planet",
                 np="the {x} planet|the {x} planet from the sun|"
                    "the {x} planet of the solar system|the name of the {x} planet|"
                    "the {x} planet in the solar system",
                 direct="which planet is the {x} from the sun|which planet is {x} from the sun|"
                        "what planet is the {x} one|which planet comes {x}|which planet is {x}|"
                        "what planet is {x} from the sun|what is the {x} planet called",
                 indirect="which planet is the {x} from the sun|what the {x} planet is|"
                          "which planet comes {x}", weight=4),
        Relation("planet position", {p: f"{p} is the {o} planet from the Sun."
                                     for o, p in zip(F.ORDINALS, F.PLANETS)}, group="planet",
                 np="the position of {x} in the solar system|"
                    "the place of {x} in the solar system|the position of the planet {x}|"
                    "the place of {x} among the planets",
                 direct="what is {x}|tell me about {x}|what do you know about {x}|"
                        "describe {x}|which planet from the sun is {x}|"
                        "where in the solar system is {x}|"
                        "what position does {x} have in the solar system|"
                        "which number is {x} in the solar system|"
                        "how far out is {x} among the planets|"
                        "which place does {x} have in the solar system|"
                        "where is {x} in the solar system|which planet is {x}",
                 indirect="which planet from the sun {x} is|where {x} is in the solar system|"
                          "which position {x} has|what place {x} has in the solar system",
                 its_np="its position|its position in the solar system|its place|the place of it",
                 its_direct="which position does it have|where in the solar system is it|"
                            "which planet from the sun is it", weight=4),
        Relation("number of things", {f"{n}|{x}": f"{cap(x)} has {k} {n}."
                                      for k, n, x in rows(F.COUNTS)},
                 np="the number of {n} of {x}|the number of {n} in {x}|"
                    "the number of {n} that {x} has|the {n} count of {x}",
                 direct="how many {n} does {x} have|how many {n} does {x} have|"
                        "how many {n} are there in {x}|how many {n} are in {x}|"
                        "how many {n} has {x}|{x} has how many {n}|"
                        "what number of {n} does {x} have|how many {n} can you count in {x}|"
                        "how many {n} belong to {x}|how many {n} do you find in {x}|"
                        "how many {n} make {x}",
                 indirect="how many {n} {x} has|how many {n} there are in {x}|"
                          "how many {n} are in {x}", weight=9),
        Relation("units", {f"{s}|{b}": f"There are {k} {s} in {b}." for k, s, b in rows(F.UNITS)},
                 np="the number of {n} in {x}|the number of {n} of {x}|"
                    "the number of {n} that make {x}",
                 direct="how many {n} are in {x}|how many {n} are there in {x}|"
                        "how many {n} make {x}|how many {n} does {x} have|how many {n} has {x}|"
                        "how many {n} is {x}|{x} is how many {n}|{x} has how many {n}|"
                        "how many {n} go into {x}|how many {n} do I need for {x}|"
                        "how many {n} make up {x}|how many {n} fit in {x}|convert {x} to {n}",
                 indirect="how many {n} are in {x}|how many {n} make {x}|"
                          "how many {n} there are in {x}|how many {n} {x} has", weight=9),
        Relation("shape by sides", {k: f"{cap(x)} has {k} sides." for k, n, x in rows(F.COUNTS)
                                    if n == "sides" and k != "four"},
                 np="the shape with {x} sides|the figure with {x} sides|"
                    "the name of a shape with {x} sides|the polygon with {x} sides|"
                    "the name of the figure with {x} sides",
                 direct="which shape has {x} sides|what shape has {x} sides|what has {x} sides|"
                        "what do you call a shape with {x} sides|which figure has {x} sides|"
                        "how is a shape with {x} sides called|"
                        "what is a figure with {x} sides called|which polygon has {x} sides",
                 indirect="which shape has {x} sides|what a shape with {x} sides is called|"
                          "which figure has {x} sides", weight=4),
    ]
    return relations


def word_relations():
    opposites = {}
    for pair in F.OPPOSITES.replace("\n", "|").split("|"):
        if pair.strip():
            a, b = pair.split()
            opposites[a] = f"The opposite of {a} is {b.strip('_')}."
            if not b.endswith("_"):
                opposites[b] = f"The opposite of {b} is {a}."
    pairs, pasts = ([pair.split() for pair in table.replace("\n", "|").split("|") if pair.strip()]
                    for table in (F.PLURALS, F.PASTS))
    translations, meanings = {}, {}
    for english, *foreign in rows(F.WORDS):
        for language, word in zip(F.LANGUAGES, foreign):
            translations[f"{english}|{language}"] = f"The {language} word for {english} is {word}."
            meanings[f"{word}|{language}"] = f"The {language} word {word} means {english}."
    plain = lambda words: {w: [w] * 3 + [f'"{w}"', f"'{w}'", f"the word {w}"] for w in words}
    quoted = lambda keys: {k: [k, k, k, '"{}"|{}'.format(*k.split("|")),
                               "'{}'|{}".format(*k.split("|"))] for k in keys}
    return [
        Relation("opposite", opposites, forms=plain(opposites), weight=16,
                 unknown=unknown(F.UNKNOWN_WORDS),
                 np="the opposite of {x}|the opposite of {x}|the opposite of {x}|"
                    "the opposite word of {x}|the contrary of {x}|the reverse of {x}|"
                    "the antonym of {x}|the word that means the opposite of {x}|"
                    "the opposite word for {x}",
                 direct="what is opposite to {x}|which word is the opposite of {x}|"
                        "what word means the opposite of {x}|{x} is the opposite of what|"
                        "which word is opposite to {x}|what do you call the opposite of {x}|"
                        "what is the opposite word to {x}|which is the opposite of {x}|"
                        "which word means not {x}|if it is not {x}, what is the opposite",
                 indirect="what the opposite of {x} is|which word is the opposite of {x}|"
                          "what is opposite to {x}"),
        Relation("plural", {a: f"The plural of {a} is {b}." for a, b in pairs},
                 forms=plain([a for a, _ in pairs]), weight=8,
                 np="the plural of {x}|the plural of {x}|the plural form of {x}|"
                    "the plural of the noun {x}",
                 direct="what is {x} in the plural|how do you write the plural of {x}|"
                        "how do you say {x} in the plural|which plural does {x} have|"
                        "how do I form the plural of {x}|how does {x} look in the plural|"
                        "what plural does {x} have|one {x}, two what",
                 indirect="what the plural of {x} is|how to form the plural of {x}|"
                          "which plural {x} has|what {x} is in the plural"),
        Relation("past", {a: f"The past tense of {a} is {b}." for a, b in pasts},
                 forms=plain([a for a, _ in pasts]), weight=9,
                 np="the past tense of {x}|the past tense of {x}|the past of {x}|"
                    "the past form of {x}|the simple past of {x}|the past tense of the verb {x}|"
                    "the past tense of to {x}",
                 direct="what is {x} in the past tense|how do you say {x} in the past|"
                        "which past tense does {x} have|what is {x} in the past|"
                        "how does {x} look in the past tense|"
                        "how do I write {x} in the past tense|how do you form the past of {x}|"
                        "what past form does {x} have|today I {x}, yesterday I what",
                 indirect="what the past tense of {x} is|how to say {x} in the past|"
                          "what {x} is in the past tense|how to form the past of {x}"),
        Relation("translation", translations, forms=quoted(translations), weight=42,
                 unknown=unknown_translation,
                 np="the {x} word for {n}|the {x} word for {n}|{n} in {x}|the {x} for {n}|"
                    "the {x} translation of {n}|the translation of {n} into {x}|"
                    "the word for {n} in {x}|the {x} name for {n}|the translation of {n} in {x}",
                 direct="how do you say {n} in {x}|how do you say {n} in {x}|"
                        "how do I say {n} in {x}|how does one say {n} in {x}|what is {n} in {x}|"
                        "translate {n} to {x}|translate {n} into {x}|"
                        "how would you say {n} in {x}|say {n} in {x}|{x} for {n}|"
                        "which {x} word means {n}|what do you say for {n} in {x}|{n} to {x}|"
                        "what does {n} translate to in {x}|how is {n} called in {x}|"
                        "what is {n} called in {x}|how do they say {n} in {x}|put {n} into {x}|"
                        "can you translate {n} into {x}|please translate {n} to {x}|"
                        "in {x}, what is {n}|could you translate {n} to {x}|"
                        "what word do they use for {n} in {x}|how do people say {n} in {x}",
                 indirect="how to say {n} in {x}|what {n} is in {x}|how {n} is called in {x}|"
                          "how you say {n} in {x}|which {x} word means {n}|"
                          "what {n} is called in {x}|how people say {n} in {x}"),
        Relation("meaning", meanings, forms=quoted(meanings), weight=22,
                 np="the meaning of the {x} word {n}|the meaning of {n} in {x}|"
                    "the English for the {x} word {n}|the English word for the {x} {n}|"
                    "the English translation of the {x} word {n}|"
                    "the translation of the {x} word {n}|the meaning of the word {n} in {x}",
                 direct="what does the {x} word {n} mean|what does {n} mean in {x}|"
                        "what is the {x} word {n} in English|what does {n} mean, in {x}|"
                        "what is the English for the {x} word {n}|translate the {x} word {n}|"
                        "translate {n} from {x}|what is meant by {n} in {x}|"
                        "which English word is {n} in {x}|in {x}, what does {n} mean|"
                        "{n} is a {x} word, what does it mean|"
                        "translate the {x} word {n} into English|what does {x} {n} mean|"
                        "how do you translate the {x} word {n}",
                 indirect="what the {x} word {n} means|what {n} means in {x}|"
                          "what the meaning of the {x} word {n} is|"
                          "how to translate the {x} word {n}"),
    ]


MAKERS = {  # past participle: past, agent
    "written": ("wrote", "author"), "painted": ("painted", "painter"),
    "composed": ("composed", "composer"), "invented": ("invented", "inventor"),
    "created": ("created", "creator"), "discovered": ("discovered", "discoverer"),
}


def other_relations():
    makers = []
    for verb, (past, agent) in MAKERS.items():
        answers = {}
        for v, who, works in rows(F.WORKS):
            for work in works.split(";") if v == verb else ():
                answers[work] = f"{cap(work)} was {v} by {who}."
        if "X-rays" in answers:
            answers["X-rays"] = answers["X-rays"].replace(" was ", " were ")
        makers.append(Relation(
            verb, answers, weight=len(answers) ** 0.7, group="works",
            unknown=unknown_work,
            np=f"the {agent} of {{x}}|the {agent} of {{x}}|the name of the {agent} of {{x}}|"
               f"the person who {past} {{x}}|{{x}}'s {agent}|the man or woman who {past} {{x}}",
            direct=f"who {past} {{x}}|who {past} {{x}}|who {past} {{x}}|by whom was {{x}} {verb}|"
                   f"who was {{x}} {verb} by|who is the {agent} of {{x}}|"
                   f"who was the {agent} of {{x}}|{{x}} was {verb} by whom|who has {verb} {{x}}|"
                   f"which person {past} {{x}}|who was it that {past} {{x}}|"
                   f"who do we thank for {{x}}|whose work is {{x}}|who made {{x}}|"
                   f"who is behind {{x}}|{{x}} was {verb} by",
            indirect=f"who {past} {{x}}|by whom {{x}} was {verb}|who the {agent} of {{x}} is|"
                     f"which person {past} {{x}}"))
    supers, forms = {}, {}
    for what, answer in rows(F.SUPERLATIVES):
        supers[what] = f"The {what} is {answer}."
        forms[what] = [what] * 2
        for a, b in (("largest", "biggest"), ("highest", "tallest"), ("fastest", "quickest"),
                     ("closest", "nearest"), ("smallest", "tiniest"), (" in the world", ""),
                     (" in the world", " on earth"), (" in the world", " of the world"),
                     ("largest", "greatest")):
            if a in what:
                forms[what].append(what.replace(a, b))
        if " in " not in what and " of " not in what and "to the" not in what:
            forms[what] += [what + " in the world", what + " of all", what + " there is"]
    colours = {x: f"{cap(x)} is {c}." for x, c in rows(F.COLOURS)}
    colour_forms = {x: [x] * 2 + ([x[2:].strip(), "the " + x[2:].strip()] if x[:2] in ("a ", "an")
                                  else []) for x in colours}
    mixes, mix_forms = {}, {}
    for a, b, c in rows(F.MIXES):
        mixes[f"{a} and {b}"] = f"{cap(a)} and {b} make {c}."
        mix_forms[f"{a} and {b}"] = [f"{a} and {b}", f"{b} and {a}"]
    return makers + [
        Relation("superlative", supers, forms=forms, weight=14,
                 np="the {x}|the {x}|the {x}|the name of the {x}",
                 direct="which is the {x}|what is the {x} called|what do you call the {x}|"
                        "which one is the {x}|how is the {x} called",
                 indirect="which is the {x}|what the {x} is called|which one is the {x}"),
        Relation("colour", colours, forms=colour_forms, weight=8,
                 np="the colour of {x}|the colour of {x}|{x}'s colour|the color of {x}|"
                    "the usual colour of {x}",
                 direct="what colour is {x}|which colour is {x}|what color is {x}|"
                        "what colour does {x} have|which colour does {x} have|"
                        "in what colour do you see {x}|{x} is what colour|which color has {x}|"
                        "what colour is {x} usually|of what colour is {x}|what colour has {x}",
                 indirect="what colour {x} is|which colour {x} has|what color {x} is|"
                          "which colour {x} is"),
        Relation("mix", mixes, forms=mix_forms, weight=5,
                 np="the mix of {x}|the mixture of {x}|the colour that {x} make|"
                    "the result of mixing {x}|the colour you get from {x}",
                 direct="what do {x} make|what colour do {x} make|"
                        "what do you get when you mix {x}|what do you get from {x}|"
                        "which colour do you get if you mix {x}|what happens if I mix {x}|"
                        "mix {x}|what colour do I get from {x}|what is {x} mixed|"
                        "{x} make which colour|which colour comes from {x}|"
                        "what colour comes out if I mix {x}",
                 indirect="what colour {x} make|what you get when you mix {x}|"
                          "which colour {x} make together"),
        Relation("landmark", {x: f"{cap(x)} is in {p}." for x, p in rows(F.LANDMARKS)}, weight=11,
                 unknown=lambda r: "the " + invented_name(r) + " " + r.choice(("Tower", "Bridge",
                                                                                 "Palace")),
                 np="the location of {x}|the place where {x} is|the place of {x}|"
                    "the place where {x} stands|the whereabouts of {x}",
                 direct="where is {x}|where is {x}|where can I find {x}|where can I see {x}|"
                        "where is {x} located|where do I find {x}|in which place is {x}|"
                        "where does {x} stand|where should I go to see {x}|"
                        "where must I go to see {x}|in what place do you find {x}|{x} is where|"
                        "where would I find {x}|where can you visit {x}|"
                        "in which city or country is {x}",
                 indirect="where {x} is|where to find {x}|where {x} is located|"
                          "where I can see {x}|where I can find {x}|where {x} stands"),
    ]


def pieces(thing):
    """The slots of a thing: "water|French" fills {n} and {x}, anything else only {x}; {s} is the
    plural of an animal."""
    n, _, x = thing.rpartition("|")
    noun = x.split(" ")[-1]
    return {"n": n, "x": x, "s": IRREGULAR.get(noun, noun + "s")}


def intents(table):
    return [(answer, phrases) for answer, *phrases in rows(table)]


class Table:
    """All that can be asked, made once."""

    def __init__(self):
        self.relations = (country_relations() + element_relations() + animal_relations() +
                          cyclic_relations() + word_relations() + other_relations())
        self.by_group = {}
        for rel in self.relations:
            if rel.group and rel.its_np:
                self.by_group.setdefault(rel.group, []).append(rel)
        self.singles, self.tinychat, self.small = (
            intents(t) for t in (F.SINGLES, F.TINYCHAT, F.SMALL_TALK))
        named = {rel.name: rel for rel in self.relations}
        self.slots = {"c": named["capital"], "k": named["capital-of"], "a": named["animal class"],
                      "p": named["planet position"], "e": named["symbol"], "l": named["landmark"]}
        self.n_facts = sum(len(rel.answers) for rel in self.relations) + len(self.singles)
        self.thanks = [(a, p) for a, p in self.small if a in ("You are welcome!", "All right.")]
        owner = {}
        for answer, phrases in self.singles + self.tinychat + self.small:
            for p in phrases:
                assert owner.setdefault(p, answer) == answer, f"two answers to {p!r}"
        # What a thing of one relation is in another: "Paris" and "Au" lead to France and gold.
        self.same_thing = {}
        for names, capital, *_ in rows(F.COUNTRIES):
            self.same_thing["capital-of", capital] = names.split("=")[0]
        for name, symbol, number in rows(F.ELEMENTS):
            self.same_thing["element by symbol", symbol] = name
            self.same_thing["element by number", number] = name
        for name, _, young, *_ in rows(F.ANIMALS):
            self.same_thing["what young", with_article(young)] = name
        for ordinal, planet in zip(F.ORDINALS, F.PLANETS):
            self.same_thing["nth planet", ordinal] = planet
        self.vocabulary = self.template_words()
        self.names = self.thing_words() - self.vocabulary

    def template_words(self):
        words = set()
        for frames in (NP_FRAMES, CLAUSE_FRAMES, PREFIXES, SUFFIXES, OTHER_FRAMES, SAME_FRAMES):
            words.update(tokens(" ".join(frames)))
        for rel in self.relations:
            for phrases in (rel.np, rel.direct, rel.indirect, rel.its_np, rel.its_direct):
                words.update(tokens(" ".join(phrases)))
        for answer, phrases in self.singles + self.tinychat + self.small:
            words.update(tokens(" ".join(phrases)))
        return words

    def thing_words(self):
        words = set(tokens(" ".join(F.LANGUAGES + alternatives(F.PEOPLE) + alternatives(F.CITIES) +
                                    alternatives(F.PET_NAMES) + alternatives(F.UNKNOWN_COUNTRIES))))
        for rel in self.relations:
            for thing in rel.things:
                for form in rel.forms.get(thing) or [thing]:
                    words.update(tokens(form))
        return {w for w in words if len(w) > 2 and not w.isdigit()}


def tokens(text):
    return re.findall(r"\w+|[-+*/=]", text.lower())


def normal(text):
    """Text without case, punctuation and spacing: what counts as the same question."""
    return " ".join(tokens(text))


TABLE = Table()


def pattern(text):
    """The question with names and numbers masked: what counts as the same phrasing."""
    out = []
    for token in tokens(text):
        mask = "#" if token.isdigit() or token in NUMBER_WORDS else (
            "@" if token in TABLE.names else token)
        if not (mask == "@" and out and out[-1] == "@"):
            out.append(mask)
    return " ".join(out)


# --------------------------------------------------------------------------- sums

NUMBER_WORDS = {w: i for i, w in enumerate(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty""".split())}
WORD_OF = {i: w for w, i in NUMBER_WORDS.items()}

ADD = """{a} + {b}|{a}+{b}|{a} + {b} =|{a}+{b}=|what is {a} + {b}|what is {a} plus {b}|
what's {a} + {b}|what's {a} plus {b}|how much is {a} plus {b}|how much is {a} + {b}|{a} plus {b}|
add {a} and {b}|calculate {a} + {b}|calculate {a} plus {b}|compute {a} + {b}|
the sum of {a} and {b}|what is the sum of {a} and {b}|what do you get when you add {a} and {b}|
what do {a} and {b} make together|{a} plus {b} equals|{a} plus {b} is|solve {a} + {b}|
what does {a} + {b} make|how much do {a} and {b} make|how much are {a} and {b}|
can you add {a} and {b}|please add {a} and {b}|tell me {a} plus {b}|
I have {a} apples and get {b} more, how many do I have|
Tom has {a} coins and finds {b} more, how many coins has he|
there are {a} boys and {b} girls, how many children are there|work out {a} + {b}|
what is {a} added to {b}|do you know what {a} + {b} is|can you tell me what {a} plus {b} is|
tell me what {a} + {b} is|I need the sum of {a} and {b}|sum {a} and {b}|how much is {a} and {b}|
what is the result of {a} + {b}|what is the total of {a} and {b}|find {a} + {b}|give me {a} + {b}|
if I add {a} and {b}, what do I get"""
SUBTRACT = """{a} - {b}|{a}-{b}|{a} - {b} =|{a}-{b}=|what is {a} - {b}|what is {a} minus {b}|
what's {a} - {b}|what's {a} minus {b}|how much is {a} minus {b}|how much is {a} - {b}|
{a} minus {b}|subtract {b} from {a}|calculate {a} - {b}|calculate {a} minus {b}|compute {a} - {b}|
take {b} away from {a}|take {b} from {a}|{a} take away {b}|what is {a} less {b}|
what do you get when you subtract {b} from {a}|{a} minus {b} equals|solve {a} - {b}|
what does {a} - {b} make|can you subtract {b} from {a}|please subtract {b} from {a}|
tell me {a} minus {b}|work out {a} - {b}|do you know what {a} - {b} is|
can you tell me what {a} minus {b} is|tell me what {a} - {b} is|what is the result of {a} - {b}|
find {a} - {b}|give me {a} - {b}|if I take {b} from {a}, what do I get|what is {b} less than {a}|
{a} minus {b} is"""
LEFT_OVER = """I have {a} apples and eat {b}, how many are left|
what is left of {a} if I take away {b}|the difference between {a} and {b}|
what is the difference between {a} and {b}|
Tom has {a} coins and loses {b}, how many coins has he left|
there are {a} birds and {b} fly away, how many remain|how much remains of {a} without {b}|
how much more is {a} than {b}|what remains if I take {b} from {a}"""
MULTIPLY = """{a} x {b}|{a} * {b}|{a}*{b}|{a}x{b}|{a} x {b} =|what is {a} x {b}|what is {a} * {b}|
what is {a} times {b}|what's {a} times {b}|how much is {a} times {b}|{a} times {b}|
multiply {a} by {b}|multiply {a} and {b}|calculate {a} x {b}|calculate {a} times {b}|
compute {a} * {b}|the product of {a} and {b}|what is the product of {a} and {b}|
{a} multiplied by {b}|what is {a} multiplied by {b}|what do you get when you multiply {a} and {b}|
{a} times {b} equals|solve {a} * {b}|can you multiply {a} by {b}|please multiply {a} by {b}|
tell me {a} times {b}|work out {a} x {b}|do you know what {a} times {b} is|
I have {a} boxes with {b} eggs each, how many eggs are there|tell me what {a} times {b} is|
find {a} times {b}|give me {a} x {b}|{a} times {b} is"""
DIVIDE = """{a} / {b}|{a}/{b}|{a} / {b} =|what is {a} / {b}|what is {a} divided by {b}|
what's {a} divided by {b}|how much is {a} divided by {b}|{a} divided by {b}|divide {a} by {b}|
calculate {a} / {b}|calculate {a} divided by {b}|compute {a} / {b}|
how many times does {b} go into {a}|what do you get when you divide {a} by {b}|
{a} divided by {b} equals|can you divide {a} by {b}|please divide {a} by {b}|
tell me {a} divided by {b}|{b} children share {a} sweets, how many does each get|
what is {a} over {b}|work out {a} / {b}|tell me what {a} / {b} is|find {a} / {b}"""
THREE_TERMS = """{a} + {b} + {c}|{a}+{b}+{c}|what is {a} + {b} + {c}|what is {a} plus {b} plus {c}
|{a} plus {b} plus {c}|how much is {a} + {b} + {c}|how much is {a} plus {b} plus {c}
|the sum of {a}, {b} and {c}|add {a}, {b} and {c}|calculate {a} + {b} + {c}|{a} + {b} + {c} ="""
THEN_ADD = """add {b} to that|add {b}|plus {b}|and plus {b}|now add {b}|and add {b}|add {b} more|
add {b} to it|add another {b}|and if I add {b}|what if I add {b}|that plus {b}|and {b} more|
now plus {b}|then add {b}|please add {b}|and now add {b} to that|plus {b}, please|
what is that plus {b}|how much is that plus {b}|+ {b}|add {b} to the result|and with {b} more|
now add {b} to it|increase that by {b}|can you add {b}|can you add {b} to that|ok, add {b}|
what do I get if I add {b}|add {b} to this number"""
THEN_SUBTRACT = """subtract {b} from that|subtract {b}|minus {b}|and minus {b}|now subtract {b}|
take away {b}|take {b} away|and subtract {b}|and if I subtract {b}|what if I take away {b}|
that minus {b}|{b} less|now minus {b}|then subtract {b}|please subtract {b}|
and now take {b} from that|minus {b}, please|what is that minus {b}|how much is that minus {b}|
- {b}|take {b} from the result|now take {b} away|decrease that by {b}|can you subtract {b}|
take {b} from it|ok, subtract {b}|what do I get if I subtract {b}|subtract {b} from this number"""
THEN_DOUBLE = """double it|double that|now double it|times two|and double|what is twice that|
times 2|twice that|and doubled|multiply that by two|now double that|and the double of that|
multiply it by 2|can you double it|please double it"""
DOUBLE = """double {a}|what is twice {a}|twice {a}|the double of {a}|what is the double of {a}|
what is {a} doubled|two times {a}|how much is twice {a}|how much is the double of {a}|
what is double {a}"""
HALF = """half of {a}|what is half of {a}|the half of {a}|how much is half of {a}|halve {a}|
what is one half of {a}|what is {a} halved|what is the half of {a}"""
SQUARE = """{a} squared|what is {a} squared|the square of {a}|what is the square of {a}|
how much is {a} squared|what is {a} times itself"""
BIGGER = """which is bigger, {a} or {b}|which number is bigger, {a} or {b}|
what is more, {a} or {b}|which is larger, {a} or {b}|is {a} or {b} bigger|
what is bigger, {a} or {b}|which is the bigger number, {a} or {b}|which is greater, {a} or {b}|
which one is more, {a} or {b}|is {a} more than {b}|is {a} bigger than {b}|compare {a} and {b}"""
SMALLER = """which is smaller, {a} or {b}|which number is smaller, {a} or {b}|
what is less, {a} or {b}|is {a} or {b} smaller|what is smaller, {a} or {b}|
which is the smaller number, {a} or {b}|which one is less, {a} or {b}|is {a} less than {b}|
is {a} smaller than {b}"""
PARITY = """is {a} even or odd|is {a} an even number|is {a} odd or even|is {a} odd|is {a} even|
is the number {a} even or odd|even or odd: {a}|tell me if {a} is even or odd|is {a} an odd number"""
NEXT_NUMBER = """what number comes after {a}|which number comes after {a}|what comes after {a}|
the number after {a}|what is the next number after {a}|which number follows {a}|what follows {a}|
what is the number after {a}|{a} is followed by which number"""
NEXT_NEXT = """and then|and after that|what comes next|and the next one|and next|then what|
and the one after that|what is next|the next one|which one comes after that|and after this one|
what comes after that|and what follows|continue|go on|one more|one further|and what comes then|
next"""
PREVIOUS_NUMBER = """what number comes before {a}|which number comes before {a}|
what comes before {a}|the number before {a}|which number is before {a}|
what is the number before {a}|which number precedes {a}"""
COUNT_TO = """count to {a}|count from 1 to {a}|can you count to {a}|please count to {a}|
count up to {a}|count from one to {a}|I want you to count to {a}|say the numbers to {a}|
say the numbers from 1 to {a}|list the numbers from 1 to {a}"""
COUNT_DOWN = """count down from {a}|count backwards from {a}|can you count down from {a}|
please count down from {a}|count down from {a} to 1|do a countdown from {a}|
start a countdown from {a}|count from {a} to 1"""


def held_out_sum(a, b):
    """About a tenth of all pairs of numbers up to 99: never added or subtracted in training."""
    low, high = min(a, b), max(a, b)
    return high <= 99 and low != high and (low * 7919 + high * 104729) % 1009 % 10 == 3


# Products with a factor up to 12 are a table and taught whole; these doubles are kept back.
HELD_OUT_PRODUCTS = {(38, 2), (39, 2), (47, 2), (60, 2), (86, 2)}


# --------------------------------------------------------------------------- other turns

ASK_ME_WHAT_I_SAID = """what did I just say|what did I say|what did I just ask|
what was my question|what did I ask you|repeat my question|repeat what I said|
what was my last question|what did I just ask you|can you repeat my question|
what have I just said|please repeat my question|what did I say just now|tell me what I just said|
what did I write|do you remember what I said|what was the last thing I said|what did I say before|
can you repeat what I said|repeat my words|which question did I ask|what was it that I asked"""
SAY_AGAIN = """say that again|repeat that|please repeat that|can you repeat that|again, please|
once more|one more time|repeat your answer|what did you say|I did not hear you|repeat|
please say that again|say it again|could you repeat that|tell me again|what was your answer|
pardon me, what did you say|come again|what did you just say|repeat it, please|
can you say that again|repeat your last answer|I did not understand, say it again"""

NAME_TELL = """my name is {v}|my name's {v}|I am called {v}|call me {v}|you can call me {v}|
people call me {v}|hi, my name is {v}|hello, my name is {v}|I'm called {v}|please call me {v}|
my first name is {v}|the name is {v}|they call me {v}|hello, I am called {v}|hey, my name is {v}|
my friends call me {v}|by the way, my name is {v}|everybody calls me {v}|remember my name: {v}"""
NAME_ASK = """what is my name|what's my name|do you know my name|tell me my name|who am I|
do you remember my name|how am I called|what am I called|can you tell me my name|say my name|
what did I say my name was|my name, please|do you still know my name|what was my name|
what is my name again"""
AGE_TELL = """I am {v} years old|I'm {v} years old|my age is {v}|I am {v}|I turned {v}|
I have just turned {v}|I am now {v} years old|I'm {v}|I am aged {v}|today I turned {v}"""
AGE_ASK = """how old am I|what is my age|do you know how old I am|do you know my age|
tell me my age|what's my age|do you remember my age|do you remember how old I am|
can you tell me how old I am|what age am I|how many years old am I"""
CITY_TELL = """I live in {v}|I am from {v}|I come from {v}|my home is in {v}|my home is {v}|
I'm from {v}|I live in the city of {v}|my home town is {v}|we live in {v}|I moved to {v}|
my city is {v}|I have lived in {v} for years"""
CITY_ASK = """where do I live|where am I from|where do I come from|what is my home town|
do you know where I live|tell me where I live|which city do I live in|in which city do I live|
do you remember where I live|where is my home|what is my city|can you tell me where I live"""
PET_TELL = """I have a {k} called {v}|my {k} is called {v}|my {k}'s name is {v}|
the name of my {k} is {v}|I have a {k}, its name is {v}|I have a {k} named {v}|
my {k} is named {v}|I own a {k} called {v}|we have a {k} called {v}|I call my {k} {v}"""
PET_ASK = """what is my {k} called|what is the name of my {k}|what's my {k}'s name|
how is my {k} called|do you know the name of my {k}|what is my {k}'s name|
tell me the name of my {k}|do you remember the name of my {k}|what do I call my {k}|
which name has my {k}|what did I call my {k}"""
FAV_TELL = """my favourite {k} is {v}|my favorite {k} is {v}|the {k} I like best is {v}|
{v} is my favourite {k}|I like {v} best of every {k}|my best loved {k} is {v}|
the {k} that I like most is {v}"""
FAV_ASK = """what is my favourite {k}|which {k} do I like best|what's my favorite {k}|
do you know my favourite {k}|tell me my favourite {k}|which is my favourite {k}|
do you remember my favourite {k}|what {k} do I like most|what {k} do I like best|
my favourite {k}, please"""

VERIFY = """is {c} the capital of {x}|is the capital of {x} {c}|is {c} {x}'s capital|
{c} is the capital of {x}, right|is it true that {c} is the capital of {x}|
the capital of {x} is {c}, is it not|am I right that {c} is the capital of {x}|
I think {c} is the capital of {x}, is that right"""
VERIFY_CONTINENT = """is {x} in {c}|is {x} a country in {c}|does {x} belong to {c}|
is it true that {x} is in {c}|{x} is in {c}, right|I think {x} is in {c}, am I right|
is {x} on the continent {c}"""
LANGUAGE_FOLLOW = """and in {l}|and in {l}|in {l}|and {l}|what about {l}|what about in {l}|
how about {l}|how about in {l}|and the {l} word|now in {l}|and how do you say it in {l}|
how do you say it in {l}|and what is it in {l}|what is it in {l}|the same in {l}|{l}, please|
in {l}, please|and in {l}, please|now {l}|and into {l}|and to {l}|how is it in {l}|
and what is the {l} word|what is the {l} word for it|also in {l}|say it in {l}|
do you know it in {l}|and how is it called in {l}|now translate it to {l}|translate that into {l}|
and what would it be in {l}|and in {l} then|can you say it in {l} too"""
WORD_FOLLOW = OTHER_FRAMES
CONFUSED = "I am not sure what you mean."


class Dialogues:
    """A deterministic stream of conversations.

    held_out: (normalised texts, patterns) that must not be asked.
    """

    def __init__(self, seed, held_out=((), ())):
        self.r = random.Random(seed)
        self.texts, self.patterns = held_out
        self.weights = [rel.weight for rel in TABLE.relations]
        self.clean = False
        self.lists = {}

    def pick(self, text):
        """One of the alternatives of a constant string, split once."""
        options = self.lists.get(text)
        if options is None:
            options = self.lists[text] = alternatives(text)
        return self.r.choice(options)

    # -- the surface of a question

    def surface(self, q, mark="?"):
        """Case, punctuation, courtesy, filler words and typing errors."""
        r = self.r
        if r.random() < 0.12:
            q = self.reworded(q)
        x = r.random()
        if x < 0.13:
            q = r.choice(PREFIXES) + q
        elif x < 0.20:
            q = q + r.choice(SUFFIXES)
        x = r.random()
        if x < 0.62:
            q = cap(q) + mark
        elif x < 0.70:
            q = cap(q)
        elif x < 0.78:
            q = q.lower() + mark
        elif x < 0.95:
            q = q.lower()
        elif x < 0.965:
            q = q.upper() + mark
        elif x < 0.98:
            q = cap(q) + r.choice(("!", "??", " ?", "...", "?!", ".", " !"))
        else:
            q = q + r.choice((mark, "", "."))
        if r.random() < 0.06 and not self.clean:
            q = self.typing_error(q)
        if r.random() < 0.02:
            q = q.replace(" ", "  ", 1)
        return q

    def reworded(self, q):
        """One small word more or less in a question of four words or more."""
        r = self.r
        words = q.split(" ")
        if len(words) < 4:
            return q
        small = [i for i, w in enumerate(words) if w in SMALL_WORDS]
        if small and r.random() < 0.5:
            del words[r.choice(small)]
        else:
            words.insert(r.randrange(1, len(words)), r.choice(FILLERS))
        return " ".join(words)

    def typing_error(self, q):
        """One slip in a lower-case word of four letters or more."""
        words = q.split(" ")
        long = [i for i, w in enumerate(words) if len(w) > 3 and w.isalpha() and w.islower()]
        if not long:
            return q
        i = self.r.choice(long)
        w = words[i]
        j = self.r.randrange(len(w) - 1)
        words[i] = self.r.choice((w[:j] + w[j + 1] + w[j] + w[j + 2:],      # swapped
                                  w[:j] + w[j + 1:],                        # left out
                                  w[:j] + w[j] + w[j:]))                    # doubled
        return " ".join(words)

    def ask(self, rel, thing):
        """A full question of a relation about one of its things."""
        r = self.r
        if rel.forms and thing in rel.forms:
            thing = r.choice(rel.forms[thing])
        x = r.random()
        if rel.np and x < 0.45:
            q = r.choice(NP_FRAMES).format(p=r.choice(rel.np).format(**pieces(thing)))
        elif rel.indirect and x > 0.75:
            q = r.choice(CLAUSE_FRAMES).format(p=r.choice(rel.indirect).format(**pieces(thing)))
        else:
            q = r.choice(rel.direct).format(**pieces(thing))
        return self.surface(q)

    # -- exchanges: lists of turns

    def fact(self):
        r = self.r
        rel = r.choices(TABLE.relations, self.weights)[0]
        if rel.unknown and r.random() < 0.08:
            thing, answer = rel.unknown(r), F.UNKNOWN
        else:
            thing = r.choice(rel.things)
            answer = rel.answers[thing]
        turns = [(self.ask(rel, thing), answer)]
        while r.random() < 0.45 and len(turns) < 6:
            step = self.follow(rel, thing)
            if not step:
                break
            rel, thing, turn = step
            if turn[1] in (answer for _, answer in turns):
                break
            if r.random() < 0.05:  # a word of thanks does not change the subject
                answer, phrases = r.choice(TABLE.thanks)
                turns.append((self.surface(r.choice(phrases), "."), answer))
            turns.append(turn)
        return turns

    def follow(self, rel, thing):
        """A question that needs the one before: another thing, or another relation of it."""
        r = self.r
        real = TABLE.same_thing.get((rel.name, thing), thing)
        group = TABLE.by_group.get(rel.group, ()) if thing in rel.answers else ()
        others = [o for o in group if o.name != rel.name]
        if rel.name in ("translation", "meaning") or rel.group == "cycle":
            return self.follow_word(rel, thing)
        if rel.group == "country" and r.random() < 0.03:
            q = self.pick(LANGUAGE_FOLLOW).format(l=r.choice(F.LANGUAGES))
            return rel, thing, (self.surface(q), CONFUSED)
        if others and r.random() < 0.55:
            new = r.choice(others)
            answer = new.answers.get(real)
            if answer is None:
                if r.random() > 0.1:
                    return None
                answer = F.UNKNOWN
            if r.random() < 0.55:
                q = r.choice(SAME_FRAMES).format(p=r.choice(new.its_np))
            else:
                q = r.choice(SAME_DIRECT_PREFIXES) + r.choice(new.its_direct)
            return new, real, (self.surface(q), answer)
        if rel.unknown and r.random() < 0.06:
            thing, answer = rel.unknown(r), F.UNKNOWN
        else:
            if rel.name in ("number of things", "units"):
                kind = thing.split("|")[0]
                same = [t for t in rel.things if t.split("|")[0] == kind and t != thing]
                if not same:
                    return None
                thing = r.choice(same)
            else:
                thing = r.choice(rel.things)
            answer = rel.answers[thing]
        form = rel.form(r, thing).split("|")[-1]
        if rel.name.startswith("nth"):
            form = "the " + form + r.choice(("", "", " one"))
        if rel.name == "superlative":
            form = "the " + form
        if rel.name == "young":
            form = r.choice((form, with_article(form), "a baby " + form))
        if rel.name == "shape by sides":
            form = form + " sides"
        return rel, thing, (self.surface(r.choice(OTHER_FRAMES).format(x=form)), answer)

    def follow_word(self, rel, thing):
        r = self.r
        if rel.group == "cycle":
            if r.random() < 0.5 and rel.name.endswith("after"):
                following = rel.answers[thing].split()[-1][:-1]
                if following not in rel.answers:
                    return None
                return rel, following, (self.surface(self.pick(NEXT_NEXT)), rel.answers[following])
            new = r.choice(rel.things)
            q = r.choice(OTHER_FRAMES).format(x=r.choice((new, rel.name.split()[1] + " " + new)))
            return rel, new, (self.surface(q), rel.answers[new])
        word, language = thing.split("|")
        if rel.name == "meaning":
            if thing not in rel.answers:
                return None
            english = rel.answers[thing].split(" means ")[1][:-1]
            rel = next(o for o in TABLE.relations if o.name == "translation")
            new = english + "|" + r.choice([l for l in F.LANGUAGES if l != language])
            q = self.pick(LANGUAGE_FOLLOW).format(l=new.split("|")[1])
        elif r.random() < 0.6:
            new = word + "|" + r.choice([l for l in F.LANGUAGES if l != language])
            q = self.pick(LANGUAGE_FOLLOW).format(l=new.split("|")[1])
        else:
            new = r.choice(rel.things).split("|")[0] + "|" + language
            q = r.choice(WORD_FOLLOW).format(x=rel.form(r, new).split("|")[0])
        return rel, new, (self.surface(q), rel.answers.get(new, F.UNKNOWN))

    def single(self, table, more=0.3):
        answer, phrases = self.r.choice(table)
        turns = [(self.surface(self.r.choice(phrases)), answer)]
        if self.r.random() < more:
            answer, phrases = self.r.choice(table)
            turns.append((self.surface(self.r.choice(phrases)), answer))
        return turns

    def verify(self):
        r = self.r
        name, phrases = r.choice((("capital", VERIFY), ("continent", VERIFY_CONTINENT)))
        rel = next(o for o in TABLE.relations if o.name == name)
        country = r.choice(rel.things)
        verb = " is in " if name == "continent" else " is "
        value = lambda c: rel.answers[c].split(verb)[-1][:-1]
        right = value(country)
        claimed = right if r.random() < 0.5 else value(r.choice(rel.things))
        q = self.surface(self.pick(phrases).format(c=claimed, x=rel.form(r, country)))
        place = ("{} is the capital of {}".format(right, country) if name == "capital"
                 else f"{country} is in {right}")
        if claimed == right:
            return [(q, f"Yes, {place}.")]
        return [(q, "No, " + (f"the capital of {country} is {right}." if name == "capital"
                              else place + "."))]

    def number(self):
        r = self.r
        return r.randrange(10) if r.random() < 0.2 else r.randrange(100)

    def sums(self):
        r = self.r
        kind = r.random()
        words = r.random() < 0.06
        if r.random() < 0.04:
            return self.too_big()
        if kind < 0.72:
            limit = 21 if words else (1000 if r.random() < 0.35 else 100)
            a, b = (r.randrange(limit) if limit != 100 else self.number() for _ in "ab")
            plus = r.random() < 0.5
            table = ADD if plus else SUBTRACT
            if not plus and a < b and r.random() < 0.7:
                a, b = b, a
            if not plus and a >= b and r.random() < 0.15:
                table = LEFT_OVER
            if held_out_sum(a, b):
                return None
            result, text = (a + b, f"{a} + {b}") if plus else (a - b, f"{a} - {b}")
        elif kind < 0.84:
            a, b, table = r.randint(0, 12), r.randint(0, 12), MULTIPLY
            if r.random() < 0.35:
                a, b = r.choice(((a, r.randrange(100)), (r.randrange(100), b)))
            if (a, b) in HELD_OUT_PRODUCTS or (b, a) in HELD_OUT_PRODUCTS:
                return None
            result, text = a * b, f"{a} x {b}"
        elif kind < 0.92:
            b, table = r.randint(1, 12), DIVIDE
            result = r.randrange(100) if r.random() < 0.4 else r.randint(0, 12)
            a = b * result
            text = f"{a} / {b}"
            if r.random() < 0.12:
                return self.not_even(b * result + r.randrange(b), b)
        elif kind < 0.95:
            return self.three_terms()
        else:
            return self.one_number()
        say = (lambda n: WORD_OF.get(n, str(n))) if words else str
        q = self.pick(table).format(a=say(a), b=say(b))
        turns = [(self.surface(q), f"{text} = {result}.")]
        while r.random() < 0.4 and len(turns) < 5:
            step = self.then(result)
            if not step:
                break
            result, turn = step
            turns.append(turn)
        return turns

    def then(self, result):
        """A sum with the result of the last one."""
        r = self.r
        if result < 0 or result > 999:
            return None
        if r.random() < 0.15:
            if (result, 2) in HELD_OUT_PRODUCTS:
                return None
            return 2 * result, (self.surface(self.pick(THEN_DOUBLE), "."),
                                f"{result} x 2 = {2 * result}.")
        b = r.randint(1, 12) if r.random() < 0.4 else r.randrange(100)
        plus = r.random() < 0.5 or b > result
        if held_out_sum(result, b):
            return None
        new = result + b if plus else result - b
        q = self.pick(THEN_ADD if plus else THEN_SUBTRACT).format(b=b)
        return new, (self.surface(q, "."), f"{result} {'+' if plus else '-'} {b} = {new}.")

    def not_even(self, a, b):
        """A division with a remainder, or by zero."""
        if self.r.random() < 0.2:
            b = 0
        elif a % b == 0:
            return None
        q = self.surface(self.pick(DIVIDE).format(a=a, b=b))
        return [(q, f"{a} / {b} is not a whole number." if b else "I cannot divide by zero.")]

    def three_terms(self):
        a, b, c = (self.r.randrange(21) for _ in "abc")
        if held_out_sum(a, b) or held_out_sum(b, c) or held_out_sum(a + b, c):
            return None
        q = self.pick(THREE_TERMS).format(a=a, b=b, c=c)
        return [(self.surface(q), f"{a} + {b} + {c} = {a + b + c}.")]

    def one_number(self):
        r = self.r
        x = r.random()
        if x < 0.35:
            a = self.number()
            if (a, 2) in HELD_OUT_PRODUCTS:
                return None
            return [(self.surface(self.pick(DOUBLE).format(a=a)), f"{a} x 2 = {2 * a}.")]
        if x < 0.7:
            a = self.number()
            return [(self.surface(self.pick(HALF).format(a=2 * a)), f"{2 * a} / 2 = {a}.")]
        a = r.randint(1, 12)
        return [(self.surface(self.pick(SQUARE).format(a=a)), f"{a} x {a} = {a * a}.")]

    def too_big(self):
        r = self.r
        big = lambda: r.randrange(1000, 10 ** r.randint(4, 7))
        if r.random() < 0.5:
            a, b = r.choice(((big(), big()), (big(), r.randrange(100)), (r.randrange(100), big())))
            q = self.pick(r.choice((ADD, SUBTRACT, MULTIPLY, DIVIDE))).format(a=a, b=b)
        else:
            a, b = r.randrange(13, 1000), r.randrange(13, 1000)
            if r.random() < 0.3:
                a, b = r.randrange(100, 1000), r.randrange(2, 100)
            q = self.pick(MULTIPLY).format(a=a, b=b)
        return [(self.surface(q), F.TOO_BIG)]

    def numbers(self):
        """Comparing, counting, neighbours."""
        r = self.r
        x = r.random()
        a, b = self.number(), self.number()
        if r.random() < 0.3:
            a, b = r.randrange(1000), r.randrange(1000)
        if x < 0.3:
            if a == b:
                return None
            big = r.random() < 0.6
            q = self.pick(BIGGER if big else SMALLER).format(a=a, b=b)
            low, high = min(a, b), max(a, b)
            return [(self.surface(q), f"{high} is bigger than {low}." if big
                     else f"{low} is smaller than {high}.")]
        if x < 0.45:
            return [(self.surface(self.pick(PARITY).format(a=a)),
                     f"{a} is {'odd' if a % 2 else 'even'}.")]
        if x < 0.7:
            turns = [(self.surface(self.pick(NEXT_NUMBER).format(a=a)),
                      f"{a + 1} comes after {a}.")]
            while r.random() < 0.4:
                a += 1
                turns.append((self.surface(self.pick(NEXT_NEXT)), f"{a + 1} comes after {a}."))
            return turns
        if x < 0.82:
            return [(self.surface(self.pick(PREVIOUS_NUMBER).format(a=a + 1)),
                     f"{a} comes before {a + 1}.")]
        n = r.randint(2, 20)
        up = r.random() < 0.6
        order = range(1, n + 1) if up else range(n, 0, -1)
        return [(self.surface(self.pick(COUNT_TO if up else COUNT_DOWN).format(a=n), "."),
                 ", ".join(map(str, order)) + ".")]

    def joke(self):
        turns = [(self.surface(self.pick(F.JOKE_FIRST), "."), F.JOKES[0])]
        while self.r.random() < 0.5:
            last = F.JOKES.index(turns[-1][1])
            turns.append((self.surface(self.pick(F.JOKE_NEXT), "."), F.JOKES[(last + 1) % 3]))
        return turns

    def unknown(self):
        r = self.r
        if r.random() < 0.35:
            thing = {slot: rel.form(r, r.choice(rel.things)) for slot, rel in TABLE.slots.items()}
            return [(self.surface(self.pick(F.OPEN_KNOWN).format(**thing)), F.UNKNOWN)]
        if r.random() < 0.25:
            q = self.pick(F.TASKS).format(
                n=r.choice((invented_name(r).lower(), *alternatives(F.UNKNOWN_WORDS))),
                x=r.choice(F.LANGUAGES), w=r.choice(alternatives(F.PEOPLE)))
            return [(self.surface(q, "."), F.CANNOT)]
        q = self.pick(F.OPEN_QUESTIONS).format(
            n=invented_name(r), y=r.randint(1200, 2020),
            w=r.choice((invented_name(r), r.choice(alternatives(F.PEOPLE)))) + " " +
            invented_name(r))
        return [(self.surface(q), F.UNKNOWN)]

    def about_user(self, known):
        """The user tells something or asks it back; `known` is what was told in this chat."""
        r = self.r
        kind = r.choice(("name", "name", "age", "city", "pet", "favourite", "favourite"))
        key = kind
        if kind == "name":
            tell, ask, what = NAME_TELL, NAME_ASK, "Your name is {v}."
            value = invented_name(r, 2) if r.random() < 0.4 else r.choice(alternatives(F.PEOPLE))
        elif kind == "age":
            tell, ask, what, value = AGE_TELL, AGE_ASK, "You are {v} years old.", r.randint(3, 99)
        elif kind == "city":
            tell, ask, what = CITY_TELL, CITY_ASK, "You live in {v}."
            value = invented_name(r) if r.random() < 0.3 else r.choice(alternatives(F.CITIES))
        elif kind == "pet":
            key = r.choice(F.PETS)
            tell, ask, what = PET_TELL, PET_ASK, f"Your {key} is called {{v}}."
            value = invented_name(r, 2) if r.random() < 0.4 else r.choice(alternatives(F.PET_NAMES))
        else:
            key = r.choice(list(F.FAVOURITES))
            tell, ask, what = FAV_TELL, FAV_ASK, f"Your favourite {key} is {{v}}."
            value = r.choice(alternatives(F.FAVOURITES[key]))
        turns = []
        if key not in known and r.random() < 0.12:
            return [(self.surface(self.pick(ask).format(k=key)), F.NOT_TOLD)]
        if key not in known or r.random() < 0.25:
            known[key] = what.format(v=value)
            said = str(value).lower() if r.random() < 0.15 else str(value)
            q = self.surface(self.pick(tell).format(k=key, v="@@"), ".").replace("@@", said)
            reply = (f"Nice to meet you, {value}!" if kind == "name"
                     else "Good to know: y" + known[key][1:])
            turns.append((q, reply))
            if r.random() < 0.5:
                return turns
        turns.append((self.surface(self.pick(ask).format(k=key)), known[key]))
        return turns

    def meta(self, last):
        """About the conversation itself; `last` is the turn before, if there is one."""
        if self.r.random() < 0.55:
            q = self.surface(self.pick(ASK_ME_WHAT_I_SAID))
            return [(q, f'You said: "{last[0].strip()}"' if last
                     else "You have not said anything yet.")]
        q = self.surface(self.pick(SAY_AGAIN), ".")
        return [(q, last[1] if last else "I have not said anything yet.")]

    def confused(self):
        """At the start of a chat: a follow-up without anything before, or no words at all."""
        r = self.r
        x = r.random()
        if x < 0.3:
            rel = r.choice([o for o in TABLE.relations if o.its_np])
            q = r.choice(SAME_FRAMES).format(p=r.choice(rel.its_np))
        elif x < 0.5:
            q = self.pick(LANGUAGE_FOLLOW).format(l=r.choice(F.LANGUAGES))
        elif x < 0.7:
            q = self.pick(r.choice((THEN_ADD, THEN_SUBTRACT))).format(b=r.randrange(100))
        else:
            return self.gibberish()
        return [(self.surface(q), CONFUSED)]

    def gibberish(self):
        """Keys hit at random."""
        r = self.r
        keys = r.choice(("asdfghjklqwertyuiopzxcvbnm", "asdfghjkl", "asdf", "qwertz", ".?!,",
                         "xyz"))
        q = " ".join("".join(r.choice(keys) for _ in range(r.randint(1, 8)))
                     for _ in range(r.randint(1, 3)))
        return [(q if r.random() < 0.6 else self.surface(q), CONFUSED)]

    KINDS = [("fact", 45), ("sums", 17), ("tinychat", 9), ("small", 7), ("single", 4), ("user", 7),
             ("meta", 4), ("unknown", 6), ("numbers", 4), ("joke", 1.5), ("verify", 3)]

    def exchange(self, last, known):
        r = self.r
        if last is None and r.random() < 0.02:
            return self.confused()
        if r.random() < 0.004:
            return self.gibberish()
        kind = r.choices([k for k, _ in self.KINDS], [w for _, w in self.KINDS])[0]
        if kind == "fact":
            return self.fact()
        if kind == "sums":
            return self.sums()
        if kind == "tinychat":
            return self.single(TABLE.tinychat)
        if kind == "small":
            return self.single(TABLE.small)
        if kind == "single":
            return self.single(TABLE.singles, 0.1)
        if kind == "user":
            return self.about_user(known)
        if kind == "meta":
            return self.meta(last)
        return getattr(self, kind)()

    def is_held_out(self, question):
        return normal(question) in self.texts or pattern(question) in self.patterns

    def conversation(self):
        """Yields the turns of one endless conversation."""
        last, known = None, {}
        while True:
            before = dict(known)
            turns = self.exchange(last, known)
            if not turns or any(self.is_held_out(q) for q, _ in turns):
                known = before
                continue
            for turn in turns:
                yield turn
                last = turn

    def system_text(self):
        """Mostly none; else a short text that must not change the answers."""
        r = self.r
        if r.random() > 0.08:
            return ""
        text = r.choice(alternatives(F.SYSTEM_TEXTS))
        if r.random() < 0.3:
            text += " " + r.choice(alternatives(F.SYSTEM_TEXTS))
        return text
