// Linear-chain CRF Viterbi: one warp per sequence, lane j owns tag j.
//
// Compile-time: TAGS (2..32), EMIT_HALF (0 or 1), VARIANT (suffix of the kernel's name, e.g. _y9_f32).
// There is no host code here: NVRTC and nvcc compile this file as it stands, and g++ compiles it
// behind a host shim that defines DYNAMIC_SHARED and HALF_TO_FLOAT, the only two hooks.
//
// Order of additions and tie rule, the same as in the NumPy reference:
//     alpha[t,j] = max_i(alpha[t-1,i] + trans[i,j]) + emission[t,j];   lowest tag, from the end backwards.
// An emission that is NaN or +inf makes the sequence's score NaN and all of its tags pad_tag.
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

// A survivor word holds the last STEPS tags of the best path into a tag, TAG_BITS each.
#if TAGS <= 16
#define TAG_BITS 4
#define STEPS 8
#else
#define TAG_BITS 5
#define STEPS 6
#endif
#define TAG_MASK ((1u << TAG_BITS) - 1u)
#define ALL_LANES 0xffffffffu
#define INFINITY_F __int_as_float(0x7f800000)
#define CHUNKS(steps) (((steps) + STEPS - 1) / STEPS)
// Shared memory of one warp, in 32-bit words: per chunk one survivor per tag and the chosen one.
#define WORDS_PER_WARP(steps) (CHUNKS(steps) * (TAGS + 1))

// Balanced maximum: the only arithmetic on the critical path from step to step.
__device__ __forceinline__ float tree_max(const float (&values)[TAGS]) {
    float top[TAGS];
#pragma unroll
    for (int i = 0; i < TAGS; ++i) top[i] = values[i];
#pragma unroll
    for (int stride = 1; stride < TAGS; stride *= 2)
#pragma unroll
        for (int i = 0; i + stride < TAGS; i += 2 * stride) top[i] = fmaxf(top[i], top[i + stride]);
    return top[0];
}

extern "C" __global__ void NAMED(linear_viterbi, VARIANT)(
    const emit_t* __restrict__ emissions,  // (rows, TAGS), an engine's output buffer
    const int* __restrict__ rows_bt,       // (batch, max_steps) row of each step; null: b * row_stride + t
    const int* __restrict__ lengths_b,     // (batch,), 0..max_steps
    const float* __restrict__ start_y, const float* __restrict__ transitions_yy,  // [from][to]
    const float* __restrict__ end_y,
    int batch, int max_steps, int row_stride, int pad_tag,
    int* __restrict__ tags_bt,             // (batch, max_steps)
    float* __restrict__ scores_b)          // (batch,)
{
    DYNAMIC_SHARED(unsigned, shared);
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int b = blockIdx.x * (blockDim.x >> 5) + warp;
    if (b >= batch) return;  // the whole warp leaves together
    unsigned* const survivors = shared + warp * WORDS_PER_WARP(max_steps);
    unsigned* const chosen = survivors + CHUNKS(max_steps) * TAGS;

    const int given = lengths_b[b];
    const int steps = given < 0 ? 0 : (given > max_steps ? max_steps : given);
    int* const out = tags_bt + (long long)b * max_steps;
    if (steps == 0) {
        for (int t = lane; t < max_steps; t += 32) out[t] = pad_tag;
        if (lane == 0) scores_b[b] = 0.0f;
        return;
    }
    const bool live = lane < TAGS;
    const int j = live ? lane : 0;  // idle lanes compute tag 0 and publish nothing
    const int* const rows = rows_bt ? rows_bt + (long long)b * max_steps : nullptr;
    const int first_row = b * row_stride;
    const emit_t* const column = emissions + j;
    const float minus_infinity = -INFINITY_F;

    float into[TAGS];  // transitions into tag j
#pragma unroll
    for (int i = 0; i < TAGS; ++i) into[i] = transitions_yy[i * TAGS + j];

    const float first = TO_FLOAT(column[(long long)(rows ? rows[0] : first_row) * TAGS]);
    bool bad = !(first < INFINITY_F);  // true for NaN and +inf
    float score = live ? start_y[j] + first : minus_infinity;
    unsigned trail = 0;

    // Emissions are loaded one chunk ahead and their row numbers two, so that no step waits for memory.
    // One branch per chunk tells the two layouts apart: without an index, addresses are constants apart.
    const emit_t* direct = column + (long long)first_row * TAGS;
    float next[STEPS];
    int next_row[STEPS];
    if (rows) {
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            next[k] = 1 + k < steps ? TO_FLOAT(column[(long long)rows[1 + k] * TAGS]) : 0.0f;
            next_row[k] = 1 + STEPS + k < steps ? rows[1 + STEPS + k] : 0;
        }
    } else {
#pragma unroll
        for (int k = 0; k < STEPS; ++k)
            next[k] = 1 + k < steps ? TO_FLOAT(direct[(1 + k) * TAGS]) : 0.0f;
    }

    const int chunks = CHUNKS(steps - 1);
    for (int chunk = 0; chunk < chunks; ++chunk) {
        const int base = chunk * STEPS + 1;
        float current[STEPS];
#pragma unroll
        for (int k = 0; k < STEPS; ++k) current[k] = next[k];
        if (rows) {
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                const int later = base + 2 * STEPS + k;
                next[k] = base + STEPS + k < steps ? TO_FLOAT(column[(long long)next_row[k] * TAGS]) : 0.0f;
                next_row[k] = later < steps ? rows[later] : 0;
            }
        } else {
            direct += STEPS * TAGS;
#pragma unroll
            for (int k = 0; k < STEPS; ++k)
                next[k] = base + STEPS + k < steps ? TO_FLOAT(direct[(1 + k) * TAGS]) : 0.0f;
        }
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
            if (base + k >= steps) break;  // uniform in the warp
            float candidate[TAGS];
#pragma unroll
            for (int i = 0; i < TAGS; ++i)
                candidate[i] = __shfl_sync(ALL_LANES, score, i) + into[i];
            const float top = tree_max(candidate);
            // Found by equality, off the critical path; downwards, so that the lowest tag wins ties.
            int best = 0;
#pragma unroll
            for (int i = TAGS - 1; i >= 0; --i) best = candidate[i] == top ? i : best;
            score = live ? top + current[k] : minus_infinity;
            bad |= !(current[k] < INFINITY_F);
            trail = (__shfl_sync(ALL_LANES, trail, best) << TAG_BITS) | (unsigned)best;
        }
        if (live) survivors[chunk * TAGS + lane] = trail;
    }

    float top = live ? score + end_y[j] : minus_infinity;
    int last_tag = lane;
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) {
        const float other = __shfl_xor_sync(ALL_LANES, top, distance);
        const int other_tag = __shfl_xor_sync(ALL_LANES, last_tag, distance);
        if (other > top || (other == top && other_tag < last_tag)) {
            top = other;
            last_tag = other_tag;
        }
    }
    if (__ballot_sync(ALL_LANES, live && bad)) {
        for (int t = lane; t < max_steps; t += 32) out[t] = pad_tag;
        if (lane == 0) scores_b[b] = __int_as_float(0x7fc00000);
        return;
    }
    if (lane == 0) scores_b[b] = top;

    __syncwarp(ALL_LANES);  // survivors were written by other lanes
    if (lane == 0) {        // backwards, STEPS tags per hop
        int tag = last_tag;
        for (int chunk = chunks - 1; chunk >= 0; --chunk) {
            const unsigned word = survivors[chunk * TAGS + tag];
            chosen[chunk] = word;
            const int held = chunk == chunks - 1 ? steps - 1 - chunk * STEPS : STEPS;
            tag = (int)((word >> (TAG_BITS * (held - 1))) & TAG_MASK);
        }
    }
    __syncwarp(ALL_LANES);  // chosen was written by lane 0
    for (int t = lane; t < max_steps; t += 32) {  // coalesced expansion
        int tag = pad_tag;
        if (t == steps - 1) {
            tag = last_tag;
        } else if (t < steps - 1) {
            const int chunk = t / STEPS;
            const int end = (chunk + 1) * STEPS < steps - 1 ? (chunk + 1) * STEPS : steps - 1;
            tag = (int)((chosen[chunk] >> (TAG_BITS * (end - 1 - t))) & TAG_MASK);
        }
        out[t] = tag;
    }
}
