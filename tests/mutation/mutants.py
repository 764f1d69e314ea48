"""Bugs to inject into the CUDA sources."""

from dataclasses import dataclass

from amlr.kernels.images import KernelSpec

CHAIN = KernelSpec(source="linear_viterbi", tags=9)
WIDE_CHAIN = KernelSpec(source="linear_viterbi", tags=17)
CONFIDENCE = KernelSpec(source="linear_confidence", tags=9)
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
        "for (int i = TAGS - 1; i >= 0; --i) best",
        "for (int i = 0; i < TAGS; ++i) best",
    ),
    Mutant("ties take the highest last tag", CHAIN, "other_tag < last_tag", "other_tag > last_tag"),
    Mutant("transitions transposed", CHAIN, "yy[i * TAGS + j]", "yy[j * TAGS + i]"),
    Mutant("start scores forgotten", CHAIN, "start_y[j] + first", "first"),
    Mutant("end scores forgotten", CHAIN, "score + end_y[j]", "score"),
    Mutant("emissions of later steps forgotten", CHAIN, "top + current[k]", "top"),
    Mutant("lengths ignored", CHAIN, "given = lengths_b[b]", "given = max_steps"),
    Mutant("row stride ignored", CHAIN, "b * row_stride;", "b * max_steps;"),
    Mutant("row index ignored", CHAIN, "rows ? rows[0] : first_row", "first_row"),
    Mutant("infinite emissions unnoticed", CHAIN, "bad |= !(current[k] < INFINITY_F);", ""),
    Mutant("maximum skips the last tag", CHAIN, "i + stride < TAGS", "i + stride < TAGS - 1"),
    # Linear chain: survivors and the way back
    Mutant(
        "last chunk taken for a full one",
        CHAIN,
        "chunk == chunks - 1 ? steps - 1 - chunk * STEPS : STEPS",
        "STEPS",
    ),
    Mutant("expansion off by one", CHAIN, "(end - 1 - t)", "(end - t)"),
    Mutant(
        "padding not written", CHAIN, "int tag = pad_tag;\n", "if (t >= steps) break; int tag;\n"
    ),
    Mutant("survivors packed too narrow", WIDE_CHAIN, "#define TAG_BITS 5", "#define TAG_BITS 4"),
    Mutant("survivor words too full", WIDE_CHAIN, "#define STEPS 6", "#define STEPS 7"),
    # Linear chain: lanes and memory
    Mutant(
        "idle lanes leave early",
        CHAIN,
        "const bool live = lane < TAGS;",
        "if (lane >= TAGS) return; const bool live = true;",
    ),
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
    Mutant("warps share one slice", CHAIN, "shared + warp * WORDS_PER_WARP(max_steps)", "shared"),
    Mutant(
        "survivor rows too wide",
        CHAIN,
        "survivors[chunk * TAGS + lane] = trail",
        "survivors[chunk * 32 + lane] = trail",
    ),
    Mutant(
        "no barrier before the way back",
        CHAIN,
        "__syncwarp(ALL_LANES);  // survivors were",
        "//",
        by="tsan",
    ),
    Mutant("no barrier before the expansion", CHAIN, "__syncwarp(ALL_LANES);  // chosen was", "//"),
    Mutant(
        "row index read past the end",
        CHAIN,
        "later < steps ? rows[later] : 0",
        "rows[later]",
        by="asan",
    ),
    Mutant(
        "emissions read past the last row",
        CHAIN,
        "base + STEPS + k < steps ? TO_FLOAT(direct[(1 + k) * TAGS]) : 0.0f",
        "TO_FLOAT(direct[(1 + k) * TAGS])",
        by="asan",
    ),
    Mutant("first row read unaligned", CHAIN, "emissions + j;", "emissions + lane;", by="asan"),
    # Confidence
    Mutant("forbidden predecessors give NaN", CONFIDENCE, "if (peak == -INFINITY_F) return", "//"),
    Mutant(
        "transitions not turned round on the way back",
        CONFIDENCE,
        "transitions_yy[j * TAGS + i]",
        "transitions_yy[i * TAGS + j]",
    ),
    Mutant("shift forgotten on the way back", CONFIDENCE, "+ now[k]) - shifts[k];", "+ now[k]);"),
    Mutant("temperature not applied to the end", CONFIDENCE, "forward + scale *", "forward +"),
    Mutant("rest of the row not cleared", CONFIDENCE, "confidence_bt[base + t] = 0.0f;", ""),
    Mutant(
        "shift overwritten before all have read it",
        CONFIDENCE,
        "__syncwarp(ALL_LANES);  // every lane",
        "//",
    ),
    Mutant(
        "no barrier after the shifts",
        CONFIDENCE,
        "__syncwarp(ALL_LANES);  // the shifts",
        "//",
        by="tsan",
    ),
    # Segmental
    Mutant("a tie takes the entity", UNITS, "candidate > walk.top ||", "candidate >= walk.top ||"),
    Mutant("ties take the shorter unit", UNITS, "start < walk.top_start", "start > walk.top_start"),
    Mutant("ties take the highest class", UNITS, "if (score > top) {", "if (score >= top) {"),
    Mutant("words without units lose the best", UNITS, "w.best[open] = top;", "w.best[open] = 0;"),
    Mutant("entities in reverse order", UNITS, "words - chosen + 1 + i", "words - i"),
    Mutant("the list overwrites unread entries", UNITS, "[words - chosen++]", "[chosen++]"),
    Mutant("units past the last word accepted", UNITS, "&& end < words;", ";"),
    Mutant("falling ends unnoticed", UNITS, "if (end < walk.open)", "if (false)"),
    Mutant("NaN scores unnoticed", UNITS, "!__ballot_sync(ALL_LANES, bad) && ", ""),
    Mutant("tile read too early", UNITS, "__syncwarp(ALL_LANES);  // the tile is", "//"),
    Mutant("tile filled too early", UNITS, "__syncwarp(ALL_LANES);  // the tile may", "//"),
    Mutant("choice cleared too late", UNITS, "__syncwarp(ALL_LANES);  // the -1", "//"),
    Mutant(
        "lane 0's results read too early",
        UNITS,
        "__syncwarp(ALL_LANES);  // found,",
        "//",
        by="tsan",
    ),
    Mutant(
        "a warp's workspace too small", UNITS, "(max_words + 33) *", "(max_words + 1) *", by="asan"
    ),
    # Box and joint scores
    Mutant("the box moves the winner up", UNITS, "chosen ? -r : r", "r"),
    Mutant(
        "the certificate compares numbers of entities only",
        UNITS,
        "classes, top, bad) == choice_u[offset + u]",
        "classes, top, bad) >= 0",
    ),
    Mutant(
        "first words use the inside tag",
        UNITS,
        "? column.begin : column.inside",
        "? column.inside : column.inside",
    ),
    Mutant(
        "a fused multiply-add", UNITS, "__fadd_rn(score, emission)", "std::fma(weight, sum, score)"
    ),
    Mutant("runs without logits keep b", UNITS, "__fadd_rn(emission, -bias)", "emission"),
    Mutant(
        "O's error forgotten in the joint box",
        UNITS,
        "(column.outside == winner ? -tag_radius : tag_radius)",
        "tag_radius",
    ),
    Mutant(
        "the joint box lets 'none' help the winner",
        UNITS,
        "choice >= 0 ? unit_radius : -",
        "choice < 0 ? unit_radius : -",
    ),
    # Confidence of units
    Mutant("temperature not applied to the unit itself", SURE, "own = scale *", "own ="),
    Mutant("only the best class counts", SURE, "(double)log1pf(sum - 1.0f)", "0.0"),
    Mutant("a forbidden unit gives NaN", SURE, "if (top == -INFINITY_F) return", "//"),
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
    Mutant("confidence of the wrong row", SURE, "confidence_u[offset + i]", "confidence_u[i]"),
    Mutant(
        "sums read before lane 0 wrote them",
        SURE,
        "__syncwarp(ALL_LANES);  // the tile of the way back may",
        "//",
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
    Mutant(
        "warps share their sums",
        SURE,
        "shared + warp * (2 * (max_words + 1) + 64)",
        "shared",
    ),
)
