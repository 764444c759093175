// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string_view>

namespace chunkllm::detail {

// Words and sentences of synthetic retrieval. None of the evaluation's (eval/passkey.hpp,
// eval/multi_key.hpp) may stand here: tests/unit/test_synthetic_retrieval.cpp compares them.

inline constexpr std::array<std::string_view, 32> kSyntheticQualities = {
    "red",      "blue",    "small",  "large",   "heavy",  "narrow",   "round",   "broken",
    "wooden",   "iron",    "marble", "cotton",  "yellow", "purple",   "second",  "third",
    "northern", "western", "hidden", "painted", "rusty",  "polished", "foreign", "borrowed",
    "ancient",  "modern",  "royal",  "quiet",   "frozen", "striped",  "double",  "empty"};

inline constexpr std::array<std::string_view, 40> kSyntheticThings = {
    "ledger",   "cabinet",     "engine",  "violin",     "telescope", "barrel",   "carriage",
    "portrait", "tower",       "orchard", "harbour",    "chapel",    "factory",  "library",
    "tunnel",   "mill",        "compass", "drum",       "kettle",    "mirror",   "sofa",
    "trunk",    "wagon",       "parcel",  "manuscript", "statue",    "fountain", "stable",
    "lantern",  "anchor",      "basket",  "piano",      "ferry",     "island",   "valley",
    "station",  "observatory", "museum",  "granary",    "theatre"};

inline constexpr std::array<std::string_view, 32> kSyntheticPeople = {
    "Agnes",   "Bertram",  "Cecily",  "Dmitri",  "Eleonora", "Farid",    "Greta",   "Hugo",
    "Ingrid",  "Jasper",   "Katya",   "Leopold", "Miriam",   "Nadia",    "Osvaldo", "Petra",
    "Quentin", "Rosalind", "Stefan",  "Tamsin",  "Ulrich",   "Valeria",  "Wilhelm", "Xenia",
    "Yusuf",   "Zelda",    "Ambrose", "Beatrix", "Clement",  "Dorothea", "Edmund",  "Florian"};

/// What a number may be of a thing.
inline constexpr std::array<std::string_view, 20> kSyntheticNumbers = {
    "weight",        "height",          "catalogue entry", "inventory mark", "shelf mark",
    "price",         "registration",    "tonnage",         "capacity",       "serial label",
    "insured value", "distance",        "account balance", "telephone line", "ticket",
    "locker",        "postal district", "licence",         "invoice",        "file reference"};

/// What a word may be of a person.
inline constexpr std::array<std::string_view, 8> kSyntheticTraits = {
    "favourite colour", "home town", "trade", "pet", "instrument", "breakfast", "cousin", "ship"};

/// [trait] words that it takes.
inline constexpr std::array<std::array<std::string_view, 8>, 8> kSyntheticTraitWords = {{
    {"crimson", "turquoise", "amber", "olive", "violet", "ivory", "scarlet", "indigo"},
    {"Lisbon", "Tampere", "Ghent", "Izmir", "Quito", "Bergen", "Kyoto", "Salford"},
    {"weaver", "glazier", "surgeon", "printer", "brewer", "mason", "tailor", "pilot"},
    {"parrot", "tortoise", "ferret", "hedgehog", "canary", "lizard", "goat", "spaniel"},
    {"cello", "trumpet", "harp", "bassoon", "accordion", "flute", "banjo", "oboe"},
    {"porridge", "kippers", "pancakes", "muesli", "omelette", "toast", "dumplings", "yoghurt"},
    {"Barnaby", "Philippa", "Roland", "Sidonie", "Thaddeus", "Ursula", "Vincent", "Winifred"},
    {"Albatross", "Meteor", "Swiftsure", "Aurora", "Pelican", "Tempest", "Gannet", "Polaris"},
}};

/// Statements of a number: {who} is a thing, {what} what the number is of.
inline constexpr std::array<std::string_view, 8> kSyntheticStatements = {
    " The {what} of the {who} is {value}.",
    " It was written down that the {who} has the {what} {value}.",
    " Note: {what} of the {who}: {value}.",
    " For the {who}, the {what} came to {value}.",
    " Everybody agreed that {value} was the {what} of the {who}.",
    " {value} is the {what} recorded for the {who}.",
    " According to the clerk, the {who} had a {what} of {value}.",
    " The {who} was entered with the {what} {value}, and the page was signed."};

/// What is asked of a statement; the value follows.
inline constexpr std::array<std::string_view, 8> kSyntheticQuestions = {
    " The {what} of the {who} was, as we read above,",
    "\n\nQ: State the {what} of the {who}.\nA: It is",
    "\n\nHow was the {who} entered? With the {what}",
    " Someone asked for the {what} of the {who}, and the reply was",
    "\nReminder, {what} of the {who}:",
    " To repeat: the {what} of the {who} is",
    "\n\nTell me the {what} that the {who} has. Certainly, the {what} of the {who} is",
    " When they looked up the {who}, they found its {what} to be"};

/// Statements of a word: {who} is a person, {what} a trait.
inline constexpr std::array<std::string_view, 4> kSyntheticTraitStatements = {
    " {who}'s {what} is {value}.", " As for {who}, the {what} is {value}.",
    " If you meet {who}, remember that the {what} is {value}.", " {value} is the {what} of {who}."};

inline constexpr std::array<std::string_view, 4> kSyntheticTraitQuestions = {
    " We were told before that {who}'s {what} is",
    "\n\nQ: {who}'s {what}?\nA:", " And {who}? The {what} of {who} is",
    "\nThe {what} named for {who} above:"};

}  // namespace chunkllm::detail
