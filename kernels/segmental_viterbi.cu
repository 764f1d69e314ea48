// Segmental decoding of ragged units, one block per post, and the second half of the box certificate.
//
// Compile-time: TAGS (plays no part here), VARIANT (suffix of the kernels' names). Like the other
// sources it holds no host code, and DYNAMIC_SHARED is its only hook for the host shim.
//
// Order of additions, the same as in the NumPy reference:
//     best[0] = 0;  best[j+1] = max(best[j], max over units ending at j of (best[start] + max_c g))
// Tie rule at each end position: no entity ends here, then the longer unit, then the lowest class.
// A post with NaN, +inf, a unit outside its words or ends that fall gets score NaN and no entity.
#include "common.cuh"

#define NOT_A_NUMBER __int_as_float(0x7fc00000)
#define NO_UNIT (-1)

// How a post's shared memory is laid out; the host computes the same size.
template <class Real>
struct Workspace {
    Real* best;        // [max_words + 1] best score of the first k words
    Real* table;       // [max_words * width] best class score of the unit (start, length - 1); -inf: none
    Real* tile_score;  // [32]
    int* last;         // [max_words + 1] last unit on that best path, packed, or NO_UNIT; then the list
    int* rank;         // [max_words] position in the list of the chosen unit that ends here, or -1
    int *tile_start, *tile_end;  // [32] each
    int* found;        // [12] of each warp what its units are and its verdict; the number of chosen units
};
#define VERDICTS MOST_WARPS
#define CHOSEN (2 * MOST_WARPS)
#define UNIT_BAD 1       // a malformed unit, or a score that is NaN or +inf
#define UNIT_LONG 2      // a unit that does not fit a row of the table

// A unit within its post: words and their number fit 16 bits, for shared memory holds fewer.
#define PACK(start, end) ((start) << 16 | (end))
#define START_OF(packed) ((packed) >> 16)
#define END_OF(packed) ((packed) & 0xffff)

template <class Real>
__device__ __forceinline__ Workspace<Real> workspace(double* shared, int max_words, int width) {
    Workspace<Real> w;
    w.best = (Real*)shared;
    w.table = w.best + max_words + 1;
    w.tile_score = w.table + max_words * width;
    w.last = (int*)(w.tile_score + 32);
    w.rank = w.last + max_words + 1;
    w.tile_start = w.rank + max_words;
    w.tile_end = w.tile_start + 32;
    w.found = w.tile_end + 32;
    return w;
}

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return a > b ? a : b; }

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

// One warp, one step a word. Lane k mod 32 keeps the best candidate for the first k words; as soon as
// best[j] is final, all lanes add the units that start at word j. Starts rise, so that of equal
// candidates the longer one came first. What a lane kept for a word that is done is no better than that
// word's best, so it needs no clearing for the next, 32 words on. On the path from step to step: sum,
// maximum, shuffle, maximum.
template <class Real>
__device__ __forceinline__ void decode_ring(const Workspace<Real>& w, int width, int words) {
    const int lane = threadIdx.x & 31;
    const Real nothing = -(Real)INFINITY_F;
    Real top = (Real)0, pending = nothing;
    int last = NO_UNIT, pending_start = 0;
    if (lane == 0) {
        w.best[0] = top;
        w.last[0] = last;
    }
    auto score_of = [&](int start) {
        const int place = (lane - start - 1) & 31;  // length - 1 of the unit that ends at this lane's word
        return start < words && place < width ? w.table[start * width + place] : nothing;
    };
    Real score = score_of(0);
    for (int word = 0; word < words; ++word) {
        const Real next = score_of(word + 1);
        const Real candidate = top + score;
        if (candidate > pending) pending_start = word;
        pending = larger(pending, candidate);
        const int owner = (word + 1) & 31;
        const Real ending = __shfl_sync(ALL_LANES, pending, owner);
        const int start = __shfl_sync(ALL_LANES, pending_start, owner);
        if (ending > top) last = PACK(start, word);
        top = larger(top, ending);
        if (lane == 0) {
            w.best[word + 1] = top;
            w.last[word + 1] = last;
        }
        score = next;
    }
}

// The same for posts with units too long for the table: lane 0 walks tiles that all lanes fill.
template <class Real>
__device__ __forceinline__ void decode_walk(
    const Workspace<Real>& w, const Real* scores, const int* start_u, const int* end_u, int units,
    int classes, int words)
{
    const int lane = threadIdx.x & 31;
    Real top = (Real)0;   // best score of a path that ends at or before word `open`
    int last = NO_UNIT;
    int open = 0;         // the word whose candidates are being compared
    bool taken = false;   // a unit that ends at `open` leads
    if (lane == 0) {
        w.best[0] = top;
        w.last[0] = last;
    }
    auto advance = [&](int end) {  // words without units carry the best on
        while (open < end) {
            ++open;
            w.best[open] = top;
            w.last[open] = last;
        }
        taken = false;
    };
    for (int first = 0; first < units; first += 32) {
        const int u = first + lane, count = units - first < 32 ? units - first : 32;
        if (u < units) {
            bool bad = false;
            best_class(scores + (long long)u * classes, classes, w.tile_score[lane], bad);
            w.tile_start[lane] = start_u[u];
            w.tile_end[lane] = end_u[u];
        }
        __syncwarp(ALL_LANES);  // the tile is complete
        if (lane == 0) {
            for (int i = 0; i < count; ++i) {
                const int start = w.tile_start[i], end = w.tile_end[i];
                if (end > open) advance(end);
                const Real candidate = w.best[start] + w.tile_score[i];
                if (candidate > top || (taken && candidate == top && start < START_OF(last))) {
                    top = candidate;
                    last = PACK(start, end);
                    taken = true;
                }
            }
        }
        __syncwarp(ALL_LANES);  // the tile may be filled again
    }
    if (lane == 0) advance(words);
}

// Decodes one post; the whole block calls it, all threads get the score and whether the post is sound.
// Afterwards found[CHOSEN] units are chosen, in text order from last[words - chosen + 1] on.
template <class Real>
__device__ __forceinline__ bool decode_post(
    const Workspace<Real>& w, const Real* scores, const int* start_u, const int* end_u, int units,
    int classes, int width, int words, Real& score)
{
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int word = warp; word < words; word += warps)
        if (lane < width) w.table[word * width + lane] = -(Real)INFINITY_F;
    for (int word = threadIdx.x; word < words; word += blockDim.x) w.rank[word] = -1;
    __syncthreads();  // the table is empty
    bool bad = false, is_long = false;
    for (int u = threadIdx.x; u < units; u += blockDim.x) {
        const int start = start_u[u], end = end_u[u], before = u ? end_u[u - 1] : 0;
        Real top;
        best_class(scores + (long long)u * classes, classes, top, bad);
        const bool inside = start >= 0 && start <= end && end < words;
        bad |= !inside || end < before;  // outside the post, or not sorted by end
        is_long |= inside && end - start >= width;
        if (inside && end - start < width) w.table[start * width + end - start] = top;
    }
    const unsigned any_bad = __ballot_sync(ALL_LANES, bad), any_long = __ballot_sync(ALL_LANES, is_long);
    if (lane == 0) w.found[warp] = (any_bad ? UNIT_BAD : 0) | (any_long ? UNIT_LONG : 0);
    __syncthreads();  // the table is filled and `found` says how
    int state = 0;
    for (int i = 0; i < warps; ++i) state |= w.found[i];
    if (state & UNIT_BAD) return false;
    if (warp == 0) {
        if (state & UNIT_LONG)
            decode_walk(w, scores, start_u, end_u, units, classes, words);
        else
            decode_ring(w, width, words);
        if (lane == 0) {
            int chosen = 0;
            for (int k = words; w.last[k] != NO_UNIT;) {
                const int unit = w.last[k];
                // Entry words - chosen >= k has been read already, so the list may overwrite it.
                w.last[words - chosen++] = unit;
                k = START_OF(unit);
            }
            for (int i = 0; i < chosen; ++i) w.rank[END_OF(w.last[words - chosen + 1 + i])] = i;
            w.found[CHOSEN] = chosen;
        }
    }
    __syncthreads();  // best, the list, the ranks and their number were written by one lane
    score = w.best[words];
    return score < (Real)INFINITY_F;
}

// Position of a unit in the list of chosen ones, or -1.
template <class Real>
__device__ __forceinline__ int rank_of(const Workspace<Real>& w, int words, int start, int end) {
    const int rank = w.rank[end];
    if (rank < 0) return -1;
    return START_OF(w.last[words - w.found[CHOSEN] + 1 + rank]) == start ? rank : -1;
}

__device__ __forceinline__ int clamp_words(int given, int max_words) {
    return given < 0 ? 0 : (given > max_words ? max_words : given);
}

// One block per post.
extern "C" __global__ void NAMED(segmental_viterbi, VARIANT)(
    const long long* __restrict__ post_offsets,  // (posts + 1,) units of each post
    const int* __restrict__ start_u, const int* __restrict__ end_u,  // words, end inclusive, ends sorted
    const float* __restrict__ scores_uc,         // g
    const int* __restrict__ lengths_b,           // words of each post
    const long long* __restrict__ word_offsets,  // (posts + 1,); read only with owner_w
    int classes, int max_words, int width,       // width: words of the longest unit in the table, at most 32
    int* __restrict__ counts_b,                  // chosen units of each post
    int* __restrict__ chosen_u2,                 // (U, 2): the first counts_b rows of each post: unit, class
    int* __restrict__ choice_u,                  // class of each chosen unit, -1 elsewhere
    int* __restrict__ owner_w,                   // (W,) unit that covers each word, -1: none; may be null
    float* __restrict__ scores_b)
{
    DYNAMIC_SHARED(double, shared);
    const int b = blockIdx.x;
    const Workspace<float> w = workspace<float>(shared, max_words, width);
    const int words = clamp_words(lengths_b[b], max_words);
    const long long offset = post_offsets[b];
    const int units = (int)(post_offsets[b + 1] - offset);
    const float* const scores = scores_uc + offset * classes;
    int* const owner = owner_w ? owner_w + word_offsets[b] : nullptr;
    if (owner)
        for (int word = threadIdx.x; word < words; word += blockDim.x) owner[word] = -1;

    float score;
    const bool sound = decode_post(
        w, scores, start_u + offset, end_u + offset, units, classes, width, words, score);
    for (int u = threadIdx.x; u < units; u += blockDim.x) {
        const int start = start_u[offset + u], end = end_u[offset + u];
        const int rank = sound ? rank_of(w, words, start, end) : -1;
        int label = -1;
        if (rank >= 0) {
            float top;
            bool bad = false;
            label = best_class(scores + (long long)u * classes, classes, top, bad);
            chosen_u2[2 * (offset + rank)] = (int)offset + u;
            chosen_u2[2 * (offset + rank) + 1] = label;
            if (owner)
                for (int word = start; word <= end; ++word) owner[word] = (int)offset + u;
        }
        choice_u[offset + u] = label;
    }
    if (threadIdx.x == 0) {
        counts_b[b] = sound ? w.found[CHOSEN] : 0;
        scores_b[b] = sound ? score : NOT_A_NUMBER;
    }
}

// Decodes the worst case of the box: certified where the same units and classes win again.
extern "C" __global__ void NAMED(segmental_certify, VARIANT)(
    const long long* __restrict__ post_offsets, const int* __restrict__ start_u,
    const int* __restrict__ end_u,
    const double* __restrict__ worst_uc,  // from joint_box_scores
    const int* __restrict__ lengths_b, const int* __restrict__ counts_b,
    const int* __restrict__ choice_u, const float* __restrict__ scores_b,  // from segmental_viterbi
    int classes, int max_words, int width,
    int* __restrict__ certified_b)        // 1 or 0
{
    DYNAMIC_SHARED(double, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int b = blockIdx.x;
    const Workspace<double> w = workspace<double>(shared, max_words, width);
    const int words = clamp_words(lengths_b[b], max_words);
    const long long offset = post_offsets[b];
    const int units = (int)(post_offsets[b + 1] - offset);
    const double* const scores = worst_uc + offset * classes;

    double score;
    const bool sound = decode_post(
        w, scores, start_u + offset, end_u + offset, units, classes, width, words, score);
    bool same = sound && scores_b[b] < INFINITY_F && w.found[CHOSEN] == counts_b[b];
    for (int u = threadIdx.x; same && u < units; u += blockDim.x) {
        if (rank_of(w, words, start_u[offset + u], end_u[offset + u]) < 0) continue;
        double top;
        bool bad;
        same = best_class(scores + (long long)u * classes, classes, top, bad) == choice_u[offset + u];
    }
    const unsigned agreeing = __ballot_sync(ALL_LANES, same);
    if (lane == 0) w.found[VERDICTS + warp] = agreeing == ALL_LANES;
    __syncthreads();  // the warps' verdicts
    if (threadIdx.x == 0) {
        int all = 1;
        for (int i = 0; i < warps; ++i) all &= w.found[VERDICTS + i];
        certified_b[b] = all;
    }
}
