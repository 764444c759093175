# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
"""Random strings and id lists that are hard on a byte-level BPE tokenizer. Deterministic by seed."""
import random
import unicodedata

# Reference and library follow different Unicode versions; what both know is Unicode 14.
assert unicodedata.unidata_version == "14.0.0", "run with Python 3.11, whose Unicode version is 14"

SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u180e\u200b\ufeff"
COMBINING = "\u0300\u0301\u0308\u030a\u0323\u0327\u0345\u0591\u05b0\u064b\u0651\u093c\u0bbe\u0ddf\u1dce\u3099\u309a"
PRECOMPOSED = "\u00e9\u00c5\u1ea5\u1e69\u212b\u2126\u0958\u0dde\u2adc\ufb1d\uac00\uac01\ud7a3\u1100\u1161\u11a8\u0b94\u01d5\u1f82\uf900\U0002f800\U0001d15e"
TRAPS = [
    "'s", "'S", "'\u017f", "'re", "'RE", "'Ve", "'ll", "'lL", "'LL", "'m", "'D", "'t", "''s", "\u2019s", "don't",
    "  ", "   ", "\n\n", "\r\n", " \n", "\n ", " \r\n \n  ", "\u00a0 ", "\u3000\u3000", "\u2028x", "\x85", "\u180e",
    "1", "12", "123", "1234", "1234567", "\u0661\u0662\u0663\u0664", "\u0967\u0968", "\u00b2\u00bd", "\u2167", "\u4e00\u4e8c", "3.14", "1,000",
    "\u212a", "\u1e9e", "\ufb06", "\ufb01", "e\u0301", "A\u030a", "\u1100\u1161\u11a8", "\uac00\u11a8", "o\u0323\u0302", "\u0344", "\u0f73\u0f71",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e007f",
    "\x00", "\x01\x7f", "\x1b[0m", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\ufdd0", "\u200d", "\u200e",
    "...", "!?", " --", "//", "=>", "{}\n", "\t\tif", "#include", "()", ");\r\n", " ;\n\n", "_", "__init__", "a_b",
    "Hello", " world", " the", "The", "THE", "\u00e9t\u00e9", "na\u00efve", "\u041f\u0440\u0438\u0432\u0435\u0442", " \u043c\u0438\u0440", "\u65e5\u672c\u8a9e", "\u3053\u3093\u306b\u3061\u306f", "\ud55c\uad6d\uc5b4",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u05e9\u05dc\u05d5\u05dd", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22", "\u03b5\u03bb\u03bb\u03b7\u03bd", "\u0561\u0580\u0574", "\u10d0\u10d1", "\u1200\u1201",
]  # fmt: skip
PROSE = (
    "The quick brown fox jumps over the lazy dog, isn't it? We'll see 42 of them in 1999. "
    "for (int i = 0; i < n; ++i) { sum += x[i] * 3.5e-2; }\n\tdef f(self): return None\n"
).split(" ")


# The reference's normaliser follows Unicode 9: it neither reorders nor composes later characters.
NORMALIZED_SINCE_10 = [
    (0x7FD, 0x7FD), (0x898, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C),
    (0xD3B, 0xD3C), (0xEBA, 0xEBA), (0x1715, 0x1715), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFA),
    (0xA82C, 0xA82C), (0x10D24, 0x10D27), (0x10EAB, 0x10EAC), (0x10F46, 0x10F50),
    (0x10F82, 0x10F85), (0x11070, 0x11070), (0x1133B, 0x1133B), (0x1145E, 0x1145E),
    (0x11839, 0x1183A), (0x11930, 0x11930), (0x11938, 0x11938), (0x1193D, 0x1193E),
    (0x11943, 0x11943), (0x119E0, 0x119E0), (0x11A34, 0x11A34), (0x11A47, 0x11A47),
    (0x11A99, 0x11A99), (0x11D42, 0x11D42), (0x11D44, 0x11D45), (0x11D97, 0x11D97),
    (0x16FF0, 0x16FF1), (0x1E130, 0x1E136), (0x1E2AE, 0x1E2AE), (0x1E2EC, 0x1E2EF),
]  # fmt: skip


def assigned_code_points():
    """Every code point of Unicode 14 that may stand in UTF-8, without NORMALIZED_SINCE_10."""
    excluded = {c for first, last in NORMALIZED_SINCE_10 for c in range(first, last + 1)}
    return [
        c
        for c in range(0x110000)
        if unicodedata.category(chr(c)) not in ("Cn", "Cs") and c not in excluded
    ]


class StringGenerator:
    def __init__(self, seed, added_tokens=()):
        self.random = random.Random(seed)
        self.assigned = assigned_code_points()
        # Blocks of 128, so that a string may stay within one script.
        blocks = {}
        for c in self.assigned:
            blocks.setdefault(c >> 7, []).append(c)
        self.blocks = list(blocks.values())
        self.added_tokens = list(added_tokens)

    def piece(self):
        r = self.random
        kind = r.randrange(13)
        if kind == 0:
            return "".join(chr(r.randrange(0x20, 0x7F)) for _ in range(r.randrange(1, 10)))
        if kind == 1:
            return "".join(r.choice(SPACES) for _ in range(r.randrange(1, 5)))
        if kind == 2:
            return r.choice((" ", "\n", "\t")) * r.randrange(1, 6)
        if kind == 3:
            return "".join(chr(r.choice(self.assigned)) for _ in range(r.randrange(1, 5)))
        if kind == 4:
            block = r.choice(self.blocks)
            return "".join(chr(r.choice(block)) for _ in range(r.randrange(1, 8)))
        if kind == 5:
            base = r.choice("aeoAqZ\u0915\u05d0\u0627\u3042\uac00\u1100") + r.choice(PRECOMPOSED)
            return base + "".join(r.choice(COMBINING) for _ in range(r.randrange(4)))
        if kind == 6:
            return "".join(r.choice("0123456789") for _ in range(r.randrange(1, 12)))
        if kind == 7:
            return chr(r.randrange(0x20)) if r.random() < 0.5 else chr(r.randrange(0x7F, 0x100))
        if kind == 8 and self.added_tokens:
            token = r.choice(self.added_tokens)
            if r.random() < 0.3:
                token = token[: r.randrange(len(token)) + 1] + r.choice((token, "", " "))
            return r.choice(("", "", " ", "  ", "\n", "a", "_", "\u00e9", ".")) + token
        if kind == 9:
            return " ".join(r.choice(PROSE) for _ in range(r.randrange(1, 8)))
        if kind == 10:
            return r.choice("'\u2019") + r.choice("stmdSTMDrvlRVL\u017f") + r.choice("eElLxs \u017f")
        return r.choice(TRAPS)

    def string(self, max_pieces=7):
        return "".join(self.piece() for _ in range(self.random.randrange(1, max_pieces + 1)))

    def ids(self, known_ids):
        return [self.random.choice(known_ids) for _ in range(self.random.randrange(1, 12))]
