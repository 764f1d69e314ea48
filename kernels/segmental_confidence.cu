// How sure each decoded unit is: forward-backward over units in the log domain, one warp per post.
//
// Compile-time: TAGS, EMIT_HALF (both play no part here), VARIANT (suffix of the kernel's name). Like the
// other sources it holds no host code, and DYNAMIC_SHARED is its only hook for the host shim.
//
// Reads what segmental_viterbi wrote on the same stream: the scores g and the chosen units. With
// x(u, c) = g(u, c) / temperature and x(u) = log sum over classes of exp x(u, c):
//     F[0] = 0;  F[j+1] = log(exp F[j]   + sum over units ending at j of   exp(F[start] + x(u)))
//     B[N] = 0;  B[j]   = log(exp B[j+1] + sum over units starting at j of exp(x(u) + B[end+1]))
//     confidence(u, c) = exp(F[start] + x(u, c) + B[end+1] - F[N])
//
// F and B grow with the post, so they are float64: float32 at 500 has steps of 3e-5. Exponentials and
// logarithms see only differences and what a sum adds to its larger part; they are float32.
#ifndef VARIANT
#define VARIANT
#endif
#define PASTE(a, b) a##b
#define NAMED(name, variant) PASTE(name, variant)
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif
#define ALL_LANES 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)
#define LOG2_E 1.44269504f

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

extern "C" __global__ void NAMED(segmental_confidence, VARIANT)(
    const long long* __restrict__ post_offsets,  // (posts + 1,) units of each post
    const int* __restrict__ start_u, const int* __restrict__ end_u,  // words, end inclusive, ends sorted
    const float* __restrict__ scores_uc,         // g
    const int* __restrict__ lengths_b,           // words of each post
    // From segmental_viterbi; a post with a malformed unit or a NaN has score NaN and is not looked at.
    const int* __restrict__ counts_b, const int* __restrict__ chosen_u2,
    const float* __restrict__ scores_b,
    int posts, int classes, int max_words, double scale,  // scale = 1 / temperature
    float* __restrict__ confidence_u)            // the first counts_b of each post; the rest is untouched
{
    DYNAMIC_SHARED(double, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int b = blockIdx.x * (blockDim.x >> 5) + warp;
    if (b >= posts) return;  // the whole warp leaves together
    const int chosen = counts_b[b];
    if (chosen == 0 || !(scores_b[b] < INFINITY_F)) return;  // uniform in the warp
    // Shared memory of one warp: F and B [max_words + 1] each, a tile of 32 units.
    double* const forward = shared + warp * (2 * (max_words + 1) + 64);
    double* const backward = forward + max_words + 1;
    double* const tile = backward + max_words + 1;
    int* const tile_start = (int*)(tile + 32);
    int* const tile_end = tile_start + 32;
    const int words = lengths_b[b] < max_words ? lengths_b[b] : max_words;
    const long long offset = post_offsets[b];
    const int units = (int)(post_offsets[b + 1] - offset);
    const float* const scores = scores_uc + offset * classes;

    auto fill = [&](int first, int count) {
        if (lane < count) {
            const long long u = first + lane;
            tile[lane] = unit_log(scores + u * classes, classes, scale);
            tile_start[lane] = start_u[offset + u];
            tile_end[lane] = end_u[offset + u];
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

    const double total = forward[words];
    for (int i = lane; i < chosen; i += 32) {
        const int u = chosen_u2[2 * (offset + i)], label = chosen_u2[2 * (offset + i) + 1];
        const double outside = forward[start_u[u]] + backward[end_u[u] + 1];
        const double own = scale * (double)scores_uc[(long long)u * classes + label];
        confidence_u[offset + i] = fminf(1.0f, exp_of(outside + own - total));
    }
}
