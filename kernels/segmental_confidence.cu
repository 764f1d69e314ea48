// How sure each decoded unit is: forward-backward over units, one block per post.
//
// Compile-time: TAGS (plays no part here), VARIANT (suffix of the kernel's name). Like the other
// sources it holds no host code, and DYNAMIC_SHARED is its only hook for the host shim.
//
// Reads what segmental_viterbi wrote on the same stream: the scores g and the chosen units. With
// p(u, c) = exp(g(u, c) / temperature) and p(u) = sum over classes of p(u, c):
//     F[0] = 1;  F[j+1] = F[j]   + sum over units ending at j of   F[start] p(u)
//     B[N] = 1;  B[j]   = B[j+1] + sum over units starting at j of p(u) B[end+1]
//     confidence(u, c) = F[start] p(u, c) B[end+1] / F[N]
//
// Sums grow and shrink by thousands of powers of two. A number is therefore a float32 and an exponent of
// its own: scaling by a power of two is exact, and no step takes a logarithm or an exponential.
//
// Posts with units too long for the table in shared memory take a slower way, in the log domain: sums are
// float64, since float32 at 500 has steps of 3e-5; exponentials and logarithms see differences only.
#include "common.cuh"
#define LOG2_E 1.44269504f
#define LOG2_E_DOUBLE 1.4426950408889634

// value = mantissa * 2^exponent; 0 has an exponent below every other's.
struct Scaled {
    float mantissa;
    int exponent;
};
#define ZERO_EXPONENT (-(1 << 20))
// Scores beyond 1.8e5 count as that much, so that exponents of any post fit an int.
#define MOST_EXPONENT (1 << 18)

// 2^exponent for exponents up to 0; what is below float32's range adds nothing.
__device__ __forceinline__ float small_power(int exponent) {
    return __int_as_float(((exponent < -127 ? -127 : exponent) + 127) << 23);
}

__device__ __forceinline__ Scaled add_scaled(Scaled a, Scaled b) {
    Scaled sum;
    sum.exponent = a.exponent > b.exponent ? a.exponent : b.exponent;
    sum.mantissa = a.mantissa * small_power(a.exponent - sum.exponent) +
                   b.mantissa * small_power(b.exponent - sum.exponent);
    return sum;
}

// The same value with a mantissa in [1, 2).
__device__ __forceinline__ Scaled normal(Scaled value) {
    const int bits = __float_as_int(value.mantissa);
    Scaled same;
    same.exponent = value.exponent + (bits >> 23) - 127;
    same.mantissa = __int_as_float((bits & 0x7fffff) | 0x3f800000);
    return same;
}

// p(u): the sum over classes.
__device__ __forceinline__ Scaled unit_weight(const float* scores, int classes, double scale) {
    float top = scores[0];
    for (int c = 1; c < classes; ++c) top = fmaxf(top, scores[c]);
    Scaled weight;
    weight.mantissa = 0.0f;
    weight.exponent = ZERO_EXPONENT;
    if (top == -INFINITY_F) return weight;
    const float slope = (float)scale * LOG2_E;
    float sum = 0.0f;
    for (int c = 0; c < classes; ++c) sum += exp2f((scores[c] - top) * slope);
    const double most = (double)MOST_EXPONENT;
    const double log2_top = fmin(fmax(scale * LOG2_E_DOUBLE * (double)top, -most), most);
    weight.exponent = (int)floor(log2_top);
    weight.mantissa = sum * exp2f((float)(log2_top - (double)weight.exponent));
    return weight;
}

// Sums from one end of the post to the other; one warp, one step a word. Lane k mod 32 adds up the sum
// that is k words away; as soon as it is final, all lanes take it and add the units that begin there.
// The table's units of one word hold the way past a word without an entity, a 1 that is added to p.
__device__ __forceinline__ void sum_ring(
    const Scaled* table, int width, int words, bool backwards, Scaled* sums)
{
    const int lane = threadIdx.x & 31;
    Scaled nothing;
    nothing.mantissa = 0.0f;
    nothing.exponent = ZERO_EXPONENT;
    Scaled sum, pending = nothing;
    sum.mantissa = 1.0f;
    sum.exponent = 0;
    auto weight_at = [&](int away) {
        const int place = (lane - away - 1) & 31;  // length - 1 of the unit that leads to this lane's word
        const int start = backwards ? words - away - 1 - place : away;
        return start >= 0 && start < words && place < width ? table[start * width + place] : nothing;
    };
    Scaled weight = weight_at(0);
    for (int away = 0; away < words; ++away) {
        if (lane == 0) sums[backwards ? words - away : away] = sum;
        const Scaled next = weight_at(away + 1);
        if (((lane - away) & 31) == 0) pending = nothing;  // its word is done; the next is 32 further on
        Scaled term;
        term.mantissa = sum.mantissa * weight.mantissa;
        term.exponent = sum.exponent + weight.exponent;
        pending = add_scaled(pending, term);
        const int owner = (away + 1) & 31;
        sum.mantissa = __shfl_sync(ALL_LANES, pending.mantissa, owner);
        sum.exponent = __shfl_sync(ALL_LANES, pending.exponent, owner);
        sum = normal(sum);
        weight = next;
    }
    if (lane == 0) sums[backwards ? 0 : words] = sum;
}

__device__ __forceinline__ float exp_of(double log) { return exp2f((float)log * LOG2_E); }

// log(exp(a) + exp(b)); -inf adds nothing.
__device__ __forceinline__ double add_logs(double a, double b) {
    const double most = a > b ? a : b, least = a > b ? b : a;
    if (least == -(double)INFINITY_F) return most;
    return most + (double)log1pf(exp_of(least - most));
}

// log of the sum over classes.
__device__ __forceinline__ double unit_log(const float* scores, int classes, double scale) {
    float top = scores[0];
    for (int c = 1; c < classes; ++c) top = fmaxf(top, scores[c]);
    if (top == -INFINITY_F) return -(double)INFINITY_F;
    float sum = 0.0f;
    for (int c = 0; c < classes; ++c) sum += exp_of(scale * ((double)scores[c] - (double)top));
    // The largest term is 1, so the sum is at least 1.
    return scale * (double)top + (double)log1pf(sum - 1.0f);
}

// The slow way: logs of F and B of the whole post; one warp. All lanes take the sum over classes of a tile
// of 32 units; lane 0 walks the tile.
__device__ __forceinline__ void sum_walk(
    double* tile, const int* start_u, const int* end_u, const float* scores, int units, int classes,
    int words, double scale, double* forward, double* backward)
{
    const int lane = threadIdx.x & 31;
    int* const tile_start = (int*)(tile + 32);
    int* const tile_end = tile_start + 32;
    auto fill = [&](int first, int count) {
        if (lane < count) {
            const long long u = first + lane;
            tile[lane] = unit_log(scores + u * classes, classes, scale);
            tile_start[lane] = start_u[u];
            tile_end[lane] = end_u[u];
        }
    };

    // Forward: `open` words are final in `forward`; `sum` is that of the next one so far.
    int open = 0;
    double sum = 0.0;
    for (int first = 0; first < units; first += 32) {
        const int count = units - first < 32 ? units - first : 32;
        fill(first, count);
        __syncwarp(ALL_LANES);  // the tile is complete
        if (lane == 0) {
            for (int i = 0; i < count; ++i) {
                // Words before this unit's last one have got all their units.
                while (open <= tile_end[i]) forward[open++] = sum;
                sum = add_logs(sum, forward[tile_start[i]] + tile[i]);
            }
        }
        __syncwarp(ALL_LANES);  // the tile may be filled again
    }
    if (lane == 0)
        while (open <= words) forward[open++] = sum;

    // Backward, from the last unit to the first: a unit that starts at word e + 1 ends later than one
    // that ends at e, so B[e + 1] is complete when the first unit that ends at e is reached.
    for (int word = lane; word <= words; word += 32)
        backward[word] = word == words ? 0.0 : -(double)INFINITY_F;
    int done = words;  // `backward` is final from here on
    for (int first = (units - 1) / 32 * 32; first >= 0; first -= 32) {
        const int count = units - first < 32 ? units - first : 32;
        fill(first, count);
        __syncwarp(ALL_LANES);  // the tile of the way back and what lanes set in `backward`
        if (lane == 0) {
            for (int i = count - 1; i >= 0; --i) {
                for (; done > tile_end[i] + 1; --done)
                    backward[done - 1] = add_logs(backward[done - 1], backward[done]);
                const int start = tile_start[i];
                backward[start] = add_logs(backward[start], tile[i] + backward[done]);
            }
        }
        __syncwarp(ALL_LANES);  // the tile of the way back may be filled again
    }
    // Words before the first unit's end follow no chosen unit, so their sums are not needed.
}

struct Chosen {
    int start, after;  // its first word, and the one after its last
    float score;
};

extern "C" __global__ void NAMED(segmental_confidence, VARIANT)(
    const long long* __restrict__ post_offsets,  // (posts + 1,) units of each post
    const int* __restrict__ start_u, const int* __restrict__ end_u,  // words, end inclusive, ends sorted
    const float* __restrict__ scores_uc,         // g
    const int* __restrict__ lengths_b,           // words of each post
    // From segmental_viterbi; a post with a malformed unit or a NaN has score NaN and is not looked at.
    const int* __restrict__ counts_b, const int* __restrict__ chosen_u2,
    const float* __restrict__ scores_b,
    int classes, int max_words, int width,       // width: words of the longest unit in the table, at most 32
    double scale,                                // 1 / temperature
    float* __restrict__ confidence_u)            // the first counts_b of each post; the rest is untouched
{
    DYNAMIC_SHARED(double, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int b = blockIdx.x;
    // Shared memory: F and B [max_words + 1] each, a tile of 32 units, the table [max_words * width] of p(u)
    // by (start, length - 1), and for each warp whether it met a long unit.
    double* const forward_log = shared;
    double* const backward_log = forward_log + max_words + 1;
    double* const tile = backward_log + max_words + 1;
    Scaled* const table = (Scaled*)(tile + 64);
    int* const met_long = (int*)(table + max_words * width);
    Scaled* const forward = (Scaled*)forward_log;
    Scaled* const backward = (Scaled*)backward_log;
    // All that needs no other load is loaded before the first branch.
    const int chosen = counts_b[b];
    const float score = scores_b[b];
    const int words = lengths_b[b] < max_words ? lengths_b[b] : max_words;
    const long long offset = post_offsets[b];
    const int units = (int)(post_offsets[b + 1] - offset);
    const float* const scores = scores_uc + offset * classes;
    if (chosen == 0 || !(score < INFINITY_F)) return;  // the whole block leaves together
    auto chosen_at = [&](int i) {
        const int u = chosen_u2[2 * (offset + i)], label = chosen_u2[2 * (offset + i) + 1];
        Chosen found;
        found.start = start_u[u];
        found.after = end_u[u] + 1;
        found.score = scores_uc[(long long)u * classes + label];
        return found;
    };
    Chosen mine;  // before the sums, which hide the wait
    if (threadIdx.x < chosen) mine = chosen_at(threadIdx.x);
    for (int word = warp; word < words; word += warps) {
        Scaled empty;
        empty.mantissa = lane ? 0.0f : 1.0f;  // a word without an entity
        empty.exponent = lane ? ZERO_EXPONENT : 0;
        if (lane < width) table[word * width + lane] = empty;
    }
    __syncthreads();  // the table is empty
    bool is_long = false;
    for (int u = threadIdx.x; u < units; u += blockDim.x) {
        const int start = start_u[offset + u], place = end_u[offset + u] - start;
        const Scaled weight = unit_weight(scores + (long long)u * classes, classes, scale);
        is_long |= place >= width;
        if (place < width) {
            Scaled* const cell = table + start * width + place;
            *cell = place ? weight : add_scaled(weight, *cell);
        }
    }
    const unsigned any_long = __ballot_sync(ALL_LANES, is_long);
    if (lane == 0) met_long[warp] = any_long != 0;
    __syncthreads();  // the table is filled, and it is known whether it holds all units
    int walk = 0;
    for (int i = 0; i < warps; ++i) walk |= met_long[i];
    if (walk) {
        if (warp == 0)
            sum_walk(tile, start_u + offset, end_u + offset, scores, units, classes, words, scale,
                     forward_log, backward_log);
    } else {
        // Both ways at once where the block has two warps.
        if (warp == 0) sum_ring(table, width, words, false, forward);
        if (warp == (warps > 1)) sum_ring(table, width, words, true, backward);
    }
    __syncthreads();  // the sums were written by one lane each

    for (int i = threadIdx.x; i < chosen; i += blockDim.x) {
        if (i != threadIdx.x) mine = chosen_at(i);
        const double own = scale * (double)mine.score;
        float sure;
        if (walk) {
            sure = exp_of(forward_log[mine.start] + backward_log[mine.after] + own - forward_log[words]);
        } else {
            const Scaled before = forward[mine.start], behind = backward[mine.after], total = forward[words];
            const int exponent = before.exponent + behind.exponent - total.exponent;
            sure = before.mantissa * behind.mantissa / total.mantissa *
                   exp2f((float)(LOG2_E_DOUBLE * own + (double)exponent));
        }
        confidence_u[offset + i] = fminf(1.0f, sure);
    }
}
