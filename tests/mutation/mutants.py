"""Bugs to inject into the CUDA sources."""

from dataclasses import dataclass

from amlr.kernels.images import KernelSpec

CHAIN = KernelSpec(source="linear_viterbi", tags=9)
WIDE_CHAIN = KernelSpec(source="linear_viterbi", tags=17)
CONFIDENCE = KernelSpec(source="linear_confidence", tags=9)
SCORES = KernelSpec(source="unit_scores", tags=13)
UNITS = KernelSpec(source="segmental_viterbi", tags=13)
SURE = KernelSpec(source="segmental_confidence", tags=13)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug.

    Attributes:
        name: What is wrong.
        spec: The source and the variant it is tried in.
        old: Text to replace.
        new: What to put there.
        by: The job that must catch it: "plain" (wrong result, or an error of the shim), "asan" or
            "tsan".
    """

    name: str
    spec: KernelSpec
    old: str
    new: str
    by: str = "plain"


MUTANTS = (
    # Linear chain: meaning
    Mutant(
        "ties take the highest previous tag",
        CHAIN,
        "best = candidate > top ? i : best;",
        "best = candidate >= top ? i : best;",
    ),
    Mutant("ties take the highest last tag", CHAIN, "other_tag < last_tag", "other_tag > last_tag"),
    Mutant("transitions transposed", CHAIN, "yy[i * TAGS + j]", "yy[j * TAGS + i]"),
    Mutant("start scores forgotten", CHAIN, "start_y[j] + load(0, j)", "load(0, j)"),
    Mutant("end scores forgotten", CHAIN, "score + end_y[j]", "score"),
    Mutant(
        "emissions of later steps forgotten",
        CHAIN,
        "tree_max(candidate) + emission",
        "tree_max(candidate)",
    ),
    Mutant("lengths ignored", CHAIN, "given = lengths_b[b]", "given = max_steps"),
    Mutant("row index ignored", CHAIN, "rows_bt ? rows", "false ? rows"),
    Mutant("infinite emissions unnoticed", CHAIN, "bad |= !(value < INFINITY_F);", ""),
    Mutant("maximum skips the last tag", CHAIN, "i + stride < TAGS", "i + stride < TAGS - 1"),
    # Linear chain: survivors and the way back
    Mutant(
        "last chunk taken for a full one",
        CHAIN,
        "chunk == chunks - 1 ? steps - 1 - chunk * STEPS : STEPS",
        "STEPS",
    ),
    Mutant("expansion off by one", CHAIN, "(end - 1 - t)", "(end - t)"),
    Mutant("padding not written", CHAIN, "int tag = -1;\n", "if (t >= steps) break; int tag;\n"),
    Mutant("survivors packed too narrow", WIDE_CHAIN, "#define TAG_BITS 5", "#define TAG_BITS 4"),
    Mutant("survivor words too full", WIDE_CHAIN, "#define STEPS 6", "#define STEPS 7"),
    # Linear chain: lanes and memory
    Mutant(
        "idle lanes skip the shuffles",
        CHAIN,
        "float candidate[TAGS];",
        "float candidate[TAGS]; if (!live) continue;",
    ),
    Mutant(
        "a lane missing from the mask",
        CHAIN,
        "__shfl_sync(ALL_LANES, score, i)",
        "__shfl_sync(ALL_LANES >> 1, score, i)",
    ),
    Mutant("back pointers of one warp only", CHAIN, "k < count; k += groups", "k < 1; k += groups"),
    Mutant("the first step of a window forgotten", CHAIN, "rows[lane] = score;", "rows[lane] = 0;"),
    Mutant(
        "survivors of a later window in the first one's place",
        CHAIN,
        "survivors[first_chunk * TAGS + cell]",
        "survivors[cell]",
    ),
    Mutant(
        "idle lanes read what others write",
        CHAIN,
        "next = live && k + 1 < count ?",
        "next = k + 1 < count ?",
        by="tsan",
    ),
    Mutant(
        "emissions read past the last row", CHAIN, "steps - base < WINDOW ?", "false ?", by="asan"
    ),
    Mutant(
        "steps before their emissions", CHAIN, "__syncthreads();  // the window's emissions", "//"
    ),
    Mutant(
        "a look back before the alphas", CHAIN, "__syncthreads();  // the window's alphas", "//"
    ),
    Mutant(
        "survivors before the back pointers",
        CHAIN,
        "__syncthreads();  // the window's back",
        "//",
    ),
    Mutant("no barrier before the way back", CHAIN, "__syncthreads();  // survivors, the", "//"),
    Mutant("no barrier before the expansion", CHAIN, "__syncthreads();  // chosen was", "//"),
    # Confidence
    Mutant(
        "transitions not turned round on the way back", CONFIDENCE, "behind ? j *", "false ? j *"
    ),
    Mutant("exponents of a sum's parts ignored", CONFIDENCE, "exponents[i] - top;", "0;"),
    Mutant(
        "temperature not applied to the end",
        CONFIDENCE,
        "exp_of(scale * end_y[j])",
        "exp_of(end_y[j])",
    ),
    Mutant(
        "temperature not applied to the total",
        CONFIDENCE,
        "exp_of(scale * end_y[i])",
        "exp_of(end_y[i])",
    ),
    Mutant("rest of the row not cleared", CONFIDENCE, "confidence_bt[base + t] = 0.0f;", ""),
    Mutant("the way back reads forwards", CONFIDENCE, "way ? steps - 1 - done - k", "false ? 0"),
    Mutant(
        "every window starts the sequence anew",
        CONFIDENCE,
        "if (done + k) forward",
        "if (k) forward",
    ),
    Mutant(
        "links without the forward sums",
        CONFIDENCE,
        "emission(t, to)) - rise;",
        "emission(t, to));",
    ),
    Mutant("windows read too early", CONFIDENCE, "__syncthreads();  // the windows are", "//"),
    Mutant("windows filled too early", CONFIDENCE, "__syncthreads();  // the windows may", "//"),
    Mutant("total read too early", CONFIDENCE, "__syncthreads();  // the total", "//"),
    Mutant(
        "sums overwritten before all have read them",
        CONFIDENCE,
        "__syncthreads();  // all have",
        "//",
    ),
    # Segmental: the table and the ring
    Mutant("a tie takes the entity", UNITS, "if (ending > top)", "if (ending >= top)"),
    Mutant("ties take the shorter unit", UNITS, "candidate > pending)", "candidate >= pending)"),
    Mutant("ties take the highest class", UNITS, "if (score > top) {", "if (score >= top) {"),
    Mutant("only the ring's first word is kept", UNITS, "(word + 1) & 31", "(word + 1) & 7"),
    Mutant(
        "entities in reverse order",
        UNITS,
        "w.last[words - chosen + 1 + i])] = i",
        "w.last[words - i])] = i",
    ),
    Mutant("the list overwrites unread entries", UNITS, "[words - chosen++]", "[chosen++]"),
    Mutant("units past the last word accepted", UNITS, "&& end < words;", ";"),
    Mutant("falling ends unnoticed", UNITS, "|| end < before;", ";"),
    Mutant("NaN scores unnoticed", UNITS, "any_bad ? UNIT_BAD", "false ? UNIT_BAD"),
    Mutant("long units are left out", UNITS, "any_long ? UNIT_LONG", "false ? UNIT_LONG"),
    Mutant("a unit with the same end is taken", UNITS, "== start ? rank : -1", ">= 0 ? rank : -1"),
    Mutant("table cleared too late", UNITS, "__syncthreads();  // the table is empty", "//"),
    Mutant("table read too early", UNITS, "__syncthreads();  // the table is filled", "//"),
    Mutant("results read too early", UNITS, "__syncthreads();  // best, the list", "//"),
    Mutant(
        "verdicts read too early",
        UNITS,
        "__syncthreads();  // the warps' verdicts",
        "//",
        by="tsan",
    ),
    Mutant(
        "the workspace too small",
        UNITS,
        "w.table + max_words * width",
        "w.table + 33 + max_words * width",
        by="asan",
    ),
    # Segmental: the walk
    Mutant("a tie takes the entity on a walk", UNITS, "candidate > top ||", "candidate >= top ||"),
    Mutant(
        "ties take the shorter unit on a walk",
        UNITS,
        "start < START_OF(last)",
        "start > START_OF(last)",
    ),
    Mutant("words without units lose the best", UNITS, "w.best[open] = top;", "w.best[open] = 0;"),
    Mutant("tile read too early", UNITS, "__syncwarp(ALL_LANES);  // the tile is", "//"),
    Mutant("tile filled too early", UNITS, "__syncwarp(ALL_LANES);  // the tile may", "//"),
    # Box and joint scores
    Mutant(
        "the certificate compares numbers of entities only",
        UNITS,
        "classes, top, bad) == choice_u[offset + u]",
        "classes, top, bad) >= 0",
    ),
    Mutant(
        "first words use the inside tag",
        SCORES,
        "cell.start * 2 * classes - classes",
        "cell.start * 2 * classes",
    ),
    Mutant(
        "a fused multiply-add",
        SCORES,
        "__fadd_rn(score, emission)",
        "std::fma(weight, sum_gains(gains, staged, post.words, classes, cell, gain), score)",
    ),
    Mutant("runs without logits keep b", SCORES, "__fadd_rn(emission, -bias)", "emission"),
    Mutant(
        "O's error forgotten in the joint box",
        SCORES,
        "(outside == winner ? -tag_radius : tag_radius)",
        "tag_radius",
    ),
    Mutant(
        "the joint box moves g for the winner",
        SCORES,
        "choice_u[cell.unit] == cell.label ? -score_radius : score_radius",
        "score_radius",
    ),
    Mutant("all posts have the first one's radii", SCORES, "2 * (blockIdx.x / parts)", "0"),
    Mutant("gains read too early", SCORES, "__syncthreads();  // the gains", "//"),
    Mutant("blocks of a post share their cells", SCORES, "(blockIdx.x % parts) *", "0 *"),
    # Confidence of units: the table and the ring
    Mutant("temperature not applied to the unit itself", SURE, "own = scale *", "own ="),
    Mutant("only the best class counts", SURE, "mantissa = sum * exp2f", "mantissa = exp2f"),
    Mutant(
        "a forbidden unit weighs one",
        SURE,
        "weight.mantissa = 0.0f;",
        "weight.mantissa = 1.0f; weight.exponent = 0; if (top == -INFINITY_F) return weight;",
    ),
    Mutant("no way past a word without an entity", SURE, "lane ? 0.0f : 1.0f", "0.0f"),
    Mutant(
        "a unit of one word ends the way past it",
        SURE,
        "place ? weight : add_scaled(weight, *cell)",
        "weight",
    ),
    Mutant("a done word's sum stays", SURE, "pending = nothing;  // its word", ";  //"),
    Mutant(
        "the way back reads units by their end",
        SURE,
        "words - away - 1 - place :",
        "words - away - 1 :",
    ),
    Mutant(
        "sums lose their exponents",
        SURE,
        "value.exponent + (bits >> 23) - 127",
        "(bits >> 23) - 127",
    ),
    Mutant(
        "the larger part of a sum is scaled up",
        SURE,
        "a.exponent > b.exponent ? a",
        "a.exponent < b.exponent ? a",
    ),
    Mutant("confidence of the wrong row", SURE, "confidence_u[offset + i]", "confidence_u[i]"),
    Mutant(
        "long units are left out of the sums",
        SURE,
        "met_long[warp] = any_long != 0",
        "met_long[warp] = 0",
    ),
    Mutant(
        "table of weights cleared too late", SURE, "__syncthreads();  // the table is empty", "//"
    ),
    Mutant(
        "table of weights read too early", SURE, "__syncthreads();  // the table is filled", "//"
    ),
    Mutant("sums read before they are written", SURE, "__syncthreads();  // the sums were", "//"),
    # Confidence of units: the walk
    Mutant("only the best class counts on a walk", SURE, "(double)log1pf(sum - 1.0f)", "0.0"),
    Mutant(
        "a forbidden unit gives NaN on a walk",
        SURE,
        "if (top == -INFINITY_F) return -(",
        "if (false) return -(",
    ),
    Mutant(
        "no sum without an entity", SURE, "double sum = 0.0;", "double sum = -(double)INFINITY_F;"
    ),
    Mutant(
        "a unit starts one word late",
        SURE,
        "forward[tile_start[i]] +",
        "forward[tile_start[i] + 1] +",
    ),
    Mutant(
        "words of a unit count before its end",
        SURE,
        "while (open <= tile_end[i])",
        "while (open < tile_end[i])",
    ),
    Mutant(
        "the last words are forgotten",
        SURE,
        "while (open <= words) forward[open++] = sum;",
        "forward[words] = forward[open - 1];",
    ),
    Mutant(
        "the way back starts with the first tile",
        SURE,
        "(units - 1) / 32 * 32; first >= 0; first -= 32",
        "0; first < units; first += 32",
    ),
    Mutant(
        "the way back walks a tile forwards",
        SURE,
        "int i = count - 1; i >= 0; --i",
        "int i = 0; i < count; ++i",
    ),
    Mutant(
        "words without a unit end the way back",
        SURE,
        "backward[done - 1] = add_logs(backward[done - 1], backward[done]);",
        ";",
    ),
    Mutant(
        "the way back ends a unit at its last word",
        SURE,
        "tile[i] + backward[done]",
        "tile[i] + backward[done - 1]",
    ),
    Mutant(
        "lane 0 adds before the sums are set",
        SURE,
        "__syncwarp(ALL_LANES);  // the tile of the way back and",
        "//",
    ),
    Mutant(
        "tile of scores read too early",
        SURE,
        "__syncwarp(ALL_LANES);  // the tile is complete",
        "//",
    ),
    Mutant(
        "tile of scores filled too early",
        SURE,
        "__syncwarp(ALL_LANES);  // the tile may be filled again",
        "//",
    ),
)
