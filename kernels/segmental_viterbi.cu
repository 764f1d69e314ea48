// Segmental and joint decoding of ragged units, one warp per post, and the box certificate.
//
// Compile-time: TAGS (columns of the emissions), EMIT_HALF (0 or 1: logits and emissions in float16),
// VARIANT (suffix of the kernels' names). Like the other sources it holds no host code, and
// DYNAMIC_SHARED and HALF_TO_FLOAT are its only hooks for the host shim.
//
// Order of additions, the same as in the NumPy reference (explicit _rn: no fused multiply-add):
//     S(unit, c) = (em[s, B-c] - em[s, O]) + (em[s+1, I-c] - em[s+1, O]) + ...      left to right
//     g(unit, c) = ((z_c - z_none) - b) + w * S(unit, c)     a unit without logits: w * S - b
//     best[0] = 0;  best[j+1] = max(best[j], max over units ending at j of (best[start] + max_c g))
// Tie rule at each end position: no entity ends here, then the longer unit, then the lowest class.
// A post with NaN, +inf, a unit outside its words or ends that fall gets score NaN and no entity.
#ifndef TAGS
#define TAGS 9
#endif
#ifndef EMIT_HALF
#define EMIT_HALF 0
#endif
#ifndef VARIANT
#define VARIANT
#endif
#define PASTE(a, b) a##b
#define NAMED(name, variant) PASTE(name, variant)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
#ifndef HALF_TO_FLOAT
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#define HALF_TO_FLOAT(bits) half_bits_to_float(bits)
#endif
#if EMIT_HALF
typedef unsigned short emit_t;
#define TO_FLOAT(value) HALF_TO_FLOAT(value)
#else
typedef float emit_t;
#define TO_FLOAT(value) (value)
#endif

#define ALL_LANES 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)
#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define NO_UNIT (-1)

// Shared memory of one warp. The tile of 32 units is filled by all lanes and read by lane 0.
template <class Real>
struct Workspace {
    Real* best;       // [words + 1] best score of the first k words
    Real* tile_score; // [32]
    int* last_unit;   // [words + 1] last unit on that best path, counted within the post, or NO_UNIT
    int* last_start;  // [words + 1] where it starts
    int *tile_start, *tile_end;  // [32] each
    int* found;       // [2] number of chosen units, and whether the post was malformed
};

template <class Real>
__device__ __forceinline__ Workspace<Real> workspace(double* shared, int warp, int max_words) {
    const int bytes = (max_words + 33) * (int)sizeof(Real) + (2 * (max_words + 1) + 66) * 4;
    char* base = (char*)shared + warp * ((bytes + 7) / 8 * 8);
    Workspace<Real> w;
    w.best = (Real*)base;
    w.tile_score = w.best + max_words + 1;
    w.last_unit = (int*)(w.tile_score + 32);
    w.last_start = w.last_unit + max_words + 1;
    w.tile_start = w.last_start + max_words + 1;
    w.tile_end = w.tile_start + 32;
    w.found = w.tile_end + 32;
    return w;
}

// Lane 0's pass over the units: `open` is the word whose candidates are being compared.
template <class Real>
struct Walk {
    Real top;            // best score of a path that ends at or before word `open`
    int top_unit, top_start;
    int open;
    bool taken;          // a unit that ends at `open` leads

    // Words without units carry the best on.
    __device__ __forceinline__ void advance(const Workspace<Real>& w, int end) {
        while (open < end) {
            ++open;
            w.best[open] = top;
            w.last_unit[open] = top_unit;
            w.last_start[open] = top_start;
        }
        taken = false;
    }
};

template <class Real>
__device__ __forceinline__ void walk_tile(Walk<Real>& walk, const Workspace<Real>& w, int first, int count) {
    for (int i = 0; i < count; ++i) {
        const int start = w.tile_start[i], end = w.tile_end[i];
        if (end > walk.open) walk.advance(w, end);
        if (end < walk.open) w.found[1] = 1;  // not sorted by end
        const Real candidate = w.best[start] + w.tile_score[i];
        if (candidate > walk.top || (walk.taken && candidate == walk.top && start < walk.top_start)) {
            walk.top = candidate;
            walk.top_unit = first + i;
            walk.top_start = start;
            walk.taken = true;
        }
    }
}

// Best class of a unit: the first maximum.
template <class Real>
__device__ __forceinline__ int best_class(const Real* scores, int classes, Real& top, bool& bad) {
    int best = 0;
    top = scores[0];
    bad |= !(top < (Real)INFINITY_F);
    for (int c = 1; c < classes; ++c) {
        const Real score = scores[c];
        bad |= !(score < (Real)INFINITY_F);
        if (score > top) {
            top = score;
            best = c;
        }
    }
    return best;
}

// Decodes one post. Afterwards found[0] units are chosen, in text order at the end of
// last_unit[0..words]; returns whether the post is sound. All lanes call it, all get the score.
template <class Real>
__device__ __forceinline__ bool decode_post(
    const Workspace<Real>& w, const Real* scores, const int* start_u, const int* end_u, int units,
    int classes, int words, Real& score)
{
    const int lane = threadIdx.x & 31;
    bool bad = false;
    Walk<Real> walk;
    walk.top = (Real)0;
    walk.top_unit = NO_UNIT;
    walk.top_start = 0;
    walk.open = 0;
    walk.taken = false;
    if (lane == 0) {
        w.best[0] = (Real)0;
        w.last_unit[0] = NO_UNIT;
        w.last_start[0] = 0;
        w.found[1] = 0;
    }
    for (int first = 0; first < units; first += 32) {
        const int u = first + lane;
        if (u < units) {
            const int start = start_u[u], end = end_u[u];
            Real top;
            best_class(scores + (long long)u * classes, classes, top, bad);
            const bool inside = start >= 0 && start <= end && end < words;
            bad |= !inside;
            w.tile_score[lane] = top;
            w.tile_start[lane] = inside ? start : 0;
            w.tile_end[lane] = inside ? end : 0;
        }
        __syncwarp(ALL_LANES);  // the tile is complete
        if (lane == 0) walk_tile(walk, w, first, units - first < 32 ? units - first : 32);
        __syncwarp(ALL_LANES);  // the tile may be filled again
    }
    if (lane == 0) {
        walk.advance(w, words);
        int chosen = 0;
        for (int k = words; w.last_unit[k] != NO_UNIT;) {
            const int start = w.last_start[k];
            // Entry words - chosen >= k has been read already, so the list may overwrite it.
            w.last_unit[words - chosen++] = w.last_unit[k];
            k = start;
        }
        w.found[0] = chosen;
    }
    __syncwarp(ALL_LANES);  // found, best and the list were written by lane 0
    score = w.best[words];
    return !__ballot_sync(ALL_LANES, bad) && !w.found[1] && score < (Real)INFINITY_F;
}

__device__ __forceinline__ int clamp_words(int given, int max_words) {
    return given < 0 ? 0 : (given > max_words ? max_words : given);
}

extern "C" __global__ void NAMED(segmental_viterbi, VARIANT)(
    const long long* __restrict__ post_offsets,  // (posts + 1,) units of each post
    const int* __restrict__ start_u, const int* __restrict__ end_u,  // words, end inclusive, ends sorted
    const float* __restrict__ scores_uc,         // g
    const int* __restrict__ lengths_b,           // words of each post
    const long long* __restrict__ word_offsets,  // (posts + 1,); read only with owner_w
    int posts, int classes, int max_words,
    int* __restrict__ counts_b,                  // chosen units of each post
    int* __restrict__ chosen_u2,                 // (U, 2): the first counts_b rows of each post: unit, class
    int* __restrict__ choice_u,                  // class of each chosen unit, -1 elsewhere
    int* __restrict__ owner_w,                   // (W,) unit that covers each word, -1: none; may be null
    float* __restrict__ scores_b)
{
    DYNAMIC_SHARED(double, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int b = blockIdx.x * (blockDim.x >> 5) + warp;
    if (b >= posts) return;  // the whole warp leaves together
    const Workspace<float> w = workspace<float>(shared, warp, max_words);
    const int words = clamp_words(lengths_b[b], max_words);
    const long long offset = post_offsets[b];
    const int units = (int)(post_offsets[b + 1] - offset);
    const float* const scores = scores_uc + offset * classes;

    float score;
    const bool sound = decode_post(w, scores, start_u + offset, end_u + offset, units, classes, words, score);
    const int chosen = sound ? w.found[0] : 0;
    for (int u = lane; u < units; u += 32) choice_u[offset + u] = -1;
    int* const owner = owner_w ? owner_w + word_offsets[b] : nullptr;
    if (owner)
        for (int word = lane; word < words; word += 32) owner[word] = -1;
    __syncwarp(ALL_LANES);  // the -1 must be in place before other lanes overwrite some
    for (int i = lane; i < chosen; i += 32) {
        const int u = w.last_unit[words - chosen + 1 + i];
        float top;
        bool bad = false;
        const int label = best_class(scores + (long long)u * classes, classes, top, bad);
        chosen_u2[2 * (offset + i)] = (int)offset + u;
        chosen_u2[2 * (offset + i) + 1] = label;
        choice_u[offset + u] = label;
        if (owner)
            for (int word = start_u[offset + u]; word <= end_u[offset + u]; ++word)
                owner[word] = (int)offset + u;
    }
    if (lane == 0) {
        counts_b[b] = chosen;
        scores_b[b] = sound ? score : NOT_A_NUMBER;
    }
}

// Decodes the worst case of the box: certified where the same units and classes win again.
extern "C" __global__ void NAMED(segmental_certify, VARIANT)(
    const long long* __restrict__ post_offsets, const int* __restrict__ start_u,
    const int* __restrict__ end_u,
    const double* __restrict__ worst_uc,  // from box_scores or joint_box_scores
    const int* __restrict__ lengths_b, const int* __restrict__ counts_b,
    const int* __restrict__ choice_u, const float* __restrict__ scores_b,  // from segmental_viterbi
    int posts, int classes, int max_words,
    int* __restrict__ certified_b)        // 1 or 0
{
    DYNAMIC_SHARED(double, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int b = blockIdx.x * (blockDim.x >> 5) + warp;
    if (b >= posts) return;
    const Workspace<double> w = workspace<double>(shared, warp, max_words);
    const int words = clamp_words(lengths_b[b], max_words);
    const long long offset = post_offsets[b];
    const int units = (int)(post_offsets[b + 1] - offset);
    const double* const scores = worst_uc + offset * classes;

    double score;
    const bool sound = decode_post(w, scores, start_u + offset, end_u + offset, units, classes, words, score);
    bool same = sound && scores_b[b] < INFINITY_F && w.found[0] == counts_b[b];
    for (int i = lane; same && i < counts_b[b]; i += 32) {
        const int u = w.last_unit[words - counts_b[b] + 1 + i];
        double top;
        bool bad = false;
        same = best_class(scores + (long long)u * classes, classes, top, bad) == choice_u[offset + u];
    }
    const unsigned agreeing = __ballot_sync(ALL_LANES, same);
    if (lane == 0) certified_b[b] = agreeing == ALL_LANES;
}

// Worst case within independent radii of g: minus on the chosen (unit, class), plus on all others.
extern "C" __global__ void NAMED(box_scores, VARIANT)(
    const float* __restrict__ scores_uc, const int* __restrict__ choice_u,
    const double* __restrict__ radii_uc,  // (U, C), or null: `radius` everywhere
    double radius, int units, int classes,
    double* __restrict__ worst_uc)
{
    const int cell = blockIdx.x * blockDim.x + threadIdx.x;
    if (cell >= units * classes) return;
    const double r = radii_uc ? radii_uc[cell] : radius;
    const bool chosen = choice_u[cell / classes] == cell % classes;
    worst_uc[cell] = (double)scores_uc[cell] + (chosen ? -r : r);
}

// Where a class's numbers are: logits (none first), and the tags' columns of the emissions.
struct Columns {
    int begin, inside, outside;
};
// columns: (1 + 2 * classes,) O, B-0..B-(C-1), I-0..I-(C-1)
__device__ __forceinline__ Columns columns_of(const int* columns, int classes, int label) {
    Columns found;
    found.outside = columns[0];
    found.begin = columns[1 + label];
    found.inside = columns[1 + classes + label];
    return found;
}

// One block per post; thread by thread over its (unit, class) cells.
extern "C" __global__ void NAMED(joint_scores, VARIANT)(
    const long long* __restrict__ post_offsets, const int* __restrict__ start_u,
    const int* __restrict__ end_u,
    const int* __restrict__ logit_row_u,         // row in `logits`, or -1: scored by emissions alone
    const emit_t* __restrict__ logits,           // (rows, 1 + classes) raw, an engine's output buffer
    const long long* __restrict__ word_offsets,  // (posts + 1,)
    const int* __restrict__ emission_row_w,      // row in `emissions` of each word's first step
    const emit_t* __restrict__ emissions,        // (rows, TAGS) raw, an engine's output buffer
    const int* __restrict__ columns, int classes, float bias, float weight,
    float* __restrict__ scores_uc)
{
    const long long offset = post_offsets[blockIdx.x];
    const int cells = (int)(post_offsets[blockIdx.x + 1] - offset) * classes;
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        const long long u = offset + cell / classes;
        const int label = cell % classes;
        const long long row = logit_row_u[u];
        const emit_t* const z = logits + row * (1 + classes);
        float score = 0.0f;
        if (row >= 0) score = (TO_FLOAT(z[1 + label]) - TO_FLOAT(z[0])) - bias;
        if (weight > 0.0f) {
            const Columns column = columns_of(columns, classes, label);
            const long long first_word = word_offsets[blockIdx.x];
            float sum = 0.0f;
            for (int word = start_u[u]; word <= end_u[u]; ++word) {
                const emit_t* const em = emissions + (long long)emission_row_w[first_word + word] * TAGS;
                const int tag = word == start_u[u] ? column.begin : column.inside;
                const float gain = TO_FLOAT(em[tag]) - TO_FLOAT(em[column.outside]);
                sum = word == start_u[u] ? gain : __fadd_rn(sum, gain);
            }
            const float emission = __fmul_rn(weight, sum);
            score = row >= 0 ? __fadd_rn(score, emission) : __fadd_rn(emission, -bias);
        } else if (row < 0) {
            score = -INFINITY_F;  // no logits and no emissions: never an entity
        }
        scores_uc[offset * classes + cell] = score;
    }
}

// The same scores in the worst case for the winner: every logit moved by at most unit_radius and every
// emission by at most tag_radius, against it (its own numbers down, the others up; O included).
extern "C" __global__ void NAMED(joint_box_scores, VARIANT)(
    const long long* __restrict__ post_offsets, const int* __restrict__ start_u,
    const int* __restrict__ end_u, const int* __restrict__ logit_row_u,
    const emit_t* __restrict__ logits, const long long* __restrict__ word_offsets,
    const int* __restrict__ emission_row_w, const emit_t* __restrict__ emissions,
    const int* __restrict__ columns,
    const int* __restrict__ choice_u, const int* __restrict__ owner_w,  // from segmental_viterbi
    int classes, double bias, double weight, double unit_radius, double tag_radius,
    double* __restrict__ worst_uc)
{
    const long long offset = post_offsets[blockIdx.x];
    const int cells = (int)(post_offsets[blockIdx.x + 1] - offset) * classes;
    for (int cell = threadIdx.x; cell < cells; cell += blockDim.x) {
        const long long u = offset + cell / classes;
        const int label = cell % classes;
        const long long row = logit_row_u[u];
        double score = 0.0;
        if (row >= 0) {
            // A chosen unit loses on its class and gains on "none"; an unchosen one the other way round.
            const emit_t* const z = logits + row * (1 + classes);
            const int choice = choice_u[u];
            const double own = choice == label ? -unit_radius : unit_radius;
            const double none = choice >= 0 ? unit_radius : -unit_radius;
            score = ((double)TO_FLOAT(z[1 + label]) + own) - ((double)TO_FLOAT(z[0]) + none) - bias;
        }
        if (weight > 0.0) {
            const Columns column = columns_of(columns, classes, label);
            const long long first_word = word_offsets[blockIdx.x];
            double sum = 0.0;
            for (int word = start_u[u]; word <= end_u[u]; ++word) {
                const emit_t* const em = emissions + (long long)emission_row_w[first_word + word] * TAGS;
                const int tag = word == start_u[u] ? column.begin : column.inside;
                const int owner = owner_w[first_word + word];
                int winner = column.outside;
                if (owner >= 0) {
                    const Columns chosen = columns_of(columns, classes, choice_u[owner]);
                    winner = word == start_u[owner] ? chosen.begin : chosen.inside;
                }
                const double gain = (double)TO_FLOAT(em[tag]) + (tag == winner ? -tag_radius : tag_radius);
                const double base = (double)TO_FLOAT(em[column.outside]) +
                                    (column.outside == winner ? -tag_radius : tag_radius);
                sum += gain - base;
            }
            const double emission = __dmul_rn(weight, sum);
            score = row >= 0 ? __dadd_rn(score, emission) : __dadd_rn(emission, -bias);
        } else if (row < 0) {
            score = -(double)INFINITY_F;
        }
        worst_uc[offset * classes + cell] = score;
    }
}
