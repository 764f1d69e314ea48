// Scores of ragged units from raw outputs, and their worst cases within the box of a certificate.
//
// Compile-time: TAGS (columns of the emissions), VARIANT (suffix of the kernels' names). Like the other
// sources it holds no host code, and DYNAMIC_SHARED is its only hook for the host shim.
//
// Order of additions, the same as in the NumPy reference (explicit _rn: no fused multiply-add):
//     S(unit, c) = (em[s, B-c] - em[s, O]) + (em[s+1, I-c] - em[s+1, O]) + ...      left to right
//     g(unit, c) = ((z_c - z_none) - b) + w * S(unit, c)     a unit without logits: w * S - b
#include "common.cuh"

// columns: (1 + 2 * classes,) of the emissions: O, B-0..B-(C-1), I-0..I-(C-1)

// What a block knows of its post. `parts` blocks share one, each takes every parts-th run of cells.
struct Post {
    long long offset, first_word;  // of its units, of its words
    int cells, words, first, stride;
};
__device__ __forceinline__ Post post_of(
    const long long* post_offsets, const long long* word_offsets, int classes, int parts, bool with_words)
{
    const int b = blockIdx.x / parts;
    Post post;
    post.offset = post_offsets[b];
    post.cells = (int)(post_offsets[b + 1] - post.offset) * classes;
    post.first_word = with_words ? word_offsets[b] : 0;
    post.words = with_words ? (int)(word_offsets[b + 1] - post.first_word) : 0;
    post.first = (blockIdx.x % parts) * blockDim.x + threadIdx.x;
    post.stride = parts * blockDim.x;
    return post;
}

// One (unit, class): its words, and the row of its logits or -1.
struct Cell {
    long long unit, row;
    int label, start, end;
    float none, own;  // the logits, where there are any
};
__device__ __forceinline__ Cell cell_of(
    const Post& post, int cell, int classes, const int* start_u, const int* end_u, const int* logit_row_u,
    const float* logits)
{
    Cell found;
    found.row = -1;
    if (cell >= post.cells) return found;
    found.unit = post.offset + cell / classes;
    found.label = cell % classes;
    found.row = logit_row_u[found.unit];
    found.start = start_u[found.unit];
    found.end = end_u[found.unit];
    if (found.row >= 0) {
        const float* const z = logits + found.row * (1 + classes);
        found.none = z[0];
        found.own = z[1 + found.label];
    }
    return found;
}

// What a word adds as first (B) or later (I) word of a class. All units of a post share these numbers, so
// the first `staged` words come from shared memory: [word][B, I][class]. `compute` is the way there.
template <class Real, class Compute>
__device__ __forceinline__ void stage_gains(Real* gains, int staged, int classes, const Compute& compute) {
    for (int i = threadIdx.x; i < staged * 2 * classes; i += blockDim.x) {
        const int word = i / (2 * classes), kind = i % (2 * classes) / classes;
        gains[i] = compute(word, kind, i % classes);
    }
    __syncthreads();  // the gains are complete
}

// S of a unit: additions from its first word to its last. Words outside the post are not read: a unit
// with such words is malformed, and its post's score becomes NaN when it is decoded.
template <class Real, class Compute>
__device__ __forceinline__ Real sum_gains(
    const Real* gains, int staged, int words, int classes, const Cell& cell, const Compute& compute)
{
    if (cell.start < 0 || cell.start > cell.end || cell.end >= words) return (Real)0;
    if (cell.end >= staged) {
        Real sum = compute(cell.start, 0, cell.label);
        for (int word = cell.start + 1; word <= cell.end; ++word) sum += compute(word, 1, cell.label);
        return sum;
    }
    const Real* const inside = gains + classes + cell.label;
    Real sum = inside[cell.start * 2 * classes - classes];
    for (int word = cell.start + 1; word <= cell.end; ++word) sum += inside[word * 2 * classes];
    return sum;
}

extern "C" __global__ void NAMED(joint_scores, VARIANT)(
    const long long* __restrict__ post_offsets, const int* __restrict__ start_u,
    const int* __restrict__ end_u,
    const int* __restrict__ logit_row_u,         // row in `logits`, or -1: scored by emissions alone
    const float* __restrict__ logits,            // (rows, 1 + classes) raw, an engine's output buffer
    const long long* __restrict__ word_offsets,  // (posts + 1,)
    const int* __restrict__ emission_row_w,      // row in `emissions` of each word's first step
    const float* __restrict__ emissions,         // (rows, TAGS) raw, an engine's output buffer
    const int* __restrict__ columns, int classes,
    int parts, int room,                         // blocks per post; words whose gains fit shared memory
    float bias, float weight,
    float* __restrict__ scores_uc)
{
    DYNAMIC_SHARED(double, shared);
    float* const gains = (float*)shared;
    const Post post = post_of(post_offsets, word_offsets, classes, parts, weight > 0.0f);
    const int staged = post.words < room ? post.words : room;
    auto gain = [&](int word, int kind, int label) {
        const float* const em = emissions + (long long)emission_row_w[post.first_word + word] * TAGS;
        return em[columns[1 + kind * classes + label]] - em[columns[0]];
    };
    // The first cell is loaded before the wait for the gains.
    Cell cell = cell_of(post, post.first, classes, start_u, end_u, logit_row_u, logits);
    stage_gains(gains, staged, classes, gain);
    for (int i = post.first; i < post.cells; i += post.stride) {
        if (i != post.first) cell = cell_of(post, i, classes, start_u, end_u, logit_row_u, logits);
        float score = 0.0f;
        if (cell.row >= 0) score = (cell.own - cell.none) - bias;
        if (weight > 0.0f) {
            const float emission = __fmul_rn(weight, sum_gains(gains, staged, post.words, classes, cell, gain));
            score = cell.row >= 0 ? __fadd_rn(score, emission) : __fadd_rn(emission, -bias);
        } else if (cell.row < 0) {
            score = -INFINITY_F;  // no logits and no emissions: never an entity
        }
        scores_uc[post.offset * classes + i] = score;
    }
}

// The same scores in the worst case for the winner: every g that has logits and every emission moved
// against it by its post's radius (the winner's numbers down, the others up; O included).
extern "C" __global__ void NAMED(joint_box_scores, VARIANT)(
    const long long* __restrict__ post_offsets, const int* __restrict__ start_u,
    const int* __restrict__ end_u, const int* __restrict__ logit_row_u,
    const float* __restrict__ logits, const long long* __restrict__ word_offsets,
    const int* __restrict__ emission_row_w, const float* __restrict__ emissions,
    const int* __restrict__ columns,
    const int* __restrict__ choice_u, const int* __restrict__ owner_w,  // from segmental_viterbi
    int classes, int parts, int room, double bias, double weight,
    const double* __restrict__ radii_b2,  // (posts, 2): of g, of emissions
    double* __restrict__ worst_uc)
{
    DYNAMIC_SHARED(double, shared);
    double* const gains = shared;
    const Post post = post_of(post_offsets, word_offsets, classes, parts, weight > 0.0);
    const double* const radii = radii_b2 + 2 * (blockIdx.x / parts);
    const double score_radius = radii[0], tag_radius = radii[1];
    const int staged = post.words < room ? post.words : room;
    auto gain = [&](int word, int kind, int label) {
        const float* const em = emissions + (long long)emission_row_w[post.first_word + word] * TAGS;
        const int tag = columns[1 + kind * classes + label], outside = columns[0];
        const int owner = owner_w[post.first_word + word];
        int winner = outside;
        if (owner >= 0) winner = columns[1 + (word == start_u[owner] ? 0 : classes) + choice_u[owner]];
        const double up = (double)em[tag] + (tag == winner ? -tag_radius : tag_radius);
        const double base = (double)em[outside] + (outside == winner ? -tag_radius : tag_radius);
        return up - base;
    };
    // The first cell is loaded before the wait for the gains.
    Cell cell = cell_of(post, post.first, classes, start_u, end_u, logit_row_u, logits);
    stage_gains(gains, staged, classes, gain);
    for (int i = post.first; i < post.cells; i += post.stride) {
        if (i != post.first) cell = cell_of(post, i, classes, start_u, end_u, logit_row_u, logits);
        double score = 0.0;
        if (cell.row >= 0) {
            score = (double)cell.own - (double)cell.none - bias;
            score += choice_u[cell.unit] == cell.label ? -score_radius : score_radius;
        }
        if (weight > 0.0) {
            const double emission = __dmul_rn(weight, sum_gains(gains, staged, post.words, classes, cell, gain));
            score = cell.row >= 0 ? __dadd_rn(score, emission) : __dadd_rn(emission, -bias);
        } else if (cell.row < 0) {
            score = -(double)INFINITY_F;
        }
        worst_uc[post.offset * classes + i] = score;
    }
}
