// Linear-chain CRF Viterbi: one block per sequence; one warp of it takes the steps, lane j owns tag j.
//
// Compile-time: TAGS (2..32), VARIANT (suffix of the kernel's name, e.g. _y9).
// There is no host code here: NVRTC and nvcc compile this file as it stands, and g++ compiles it
// behind a host shim that defines DYNAMIC_SHARED, the only hook.
//
// Order of additions and tie rule, the same as in the NumPy reference:
//     alpha[t,j] = max_i(alpha[t-1,i] + trans[i,j]) + emission[t,j];   lowest tag, from the end backwards.
// An emission that is NaN or +inf makes the sequence's score NaN and all of its tags -1.
#include "common.cuh"

// A survivor word holds the last STEPS tags of the best path into a tag, TAG_BITS each.
#if TAGS <= 16
#define TAG_BITS 4
#define STEPS 8
#else
#define TAG_BITS 5
#define STEPS 6
#endif
#define TAG_MASK ((1u << TAG_BITS) - 1u)
#define CHUNKS(steps) (((steps) + STEPS - 1) / STEPS)
// Steps between two looks back; the host computes the same shared memory.
#define WINDOW (16 * STEPS)

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
    const float* __restrict__ emissions,   // (rows, TAGS), an engine's output buffer
    const int* __restrict__ rows_bt,       // (batch, max_steps) row of each step; null: b * max_steps + t
    const int* __restrict__ lengths_b,     // (batch,), 0..max_steps
    const float* __restrict__ start_y, const float* __restrict__ transitions_yy,  // [from][to]
    const float* __restrict__ end_y,
    int max_steps,
    int* __restrict__ tags_bt,             // (batch, max_steps)
    float* __restrict__ scores_b)          // (batch,)
{
    DYNAMIC_SHARED(unsigned, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int b = blockIdx.x;
    // Shared memory: survivors and the chosen ones [CHUNKS(max_steps)], rows of a window (emissions, then
    // alphas; the row before the window comes first), its back pointers, and what warps tell each other.
    unsigned* const survivors = shared;
    unsigned* const chosen = survivors + CHUNKS(max_steps) * TAGS;
    float* const rows = (float*)(chosen + CHUNKS(max_steps));
    unsigned* const told = (unsigned*)(rows + (WINDOW + 1) * TAGS);
    unsigned char* const back = (unsigned char*)(told + MOST_WARPS + 1);

    const int given = lengths_b[b];
    const int steps = given < 0 ? 0 : (given > max_steps ? max_steps : given);
    int* const out = tags_bt + (long long)b * max_steps;
    if (steps == 0) {  // the whole block leaves together
        for (int t = threadIdx.x; t < max_steps; t += blockDim.x) out[t] = -1;
        if (threadIdx.x == 0) scores_b[b] = 0.0f;
        return;
    }
    // One warp takes the steps, all warps do the rest. Neighbouring warps of different blocks share a
    // scheduler, so the warp that works alone is another one in blocks that are likely to be neighbours.
    const bool alone = warp == (b + (b >> 7)) % warps;
    const bool live = lane < TAGS;
    // Threads of one tag; those beyond TAGS * groups only help to load. In each warp lane j has tag j,
    // and idle lanes compute some other tag and publish nothing.
    const int j = lane % TAGS;
    const int groups = warps * (32 / TAGS), group = warp * (32 / TAGS) + lane / TAGS;
    const bool grouped = lane / TAGS < 32 / TAGS;
    float into[TAGS];  // transitions into tag j
#pragma unroll
    for (int i = 0; i < TAGS; ++i) into[i] = transitions_yy[i * TAGS + j];

    bool bad = false;  // met NaN or +inf
    auto load = [&](int t, int tag) {
        const long long step = (long long)b * max_steps + t, row = rows_bt ? rows_bt[step] : step;
        const float value = emissions[row * TAGS + tag];
        bad |= !(value < INFINITY_F);
        return value;
    };
    float score = alone ? start_y[j] + load(0, j) : 0.0f;
    for (int base = 1; base < steps; base += WINDOW) {
        const int count = steps - base < WINDOW ? steps - base : WINDOW;
        for (int cell = threadIdx.x; cell < count * TAGS; cell += blockDim.x)
            rows[TAGS + cell] = load(base + cell / TAGS, cell % TAGS);
        if (alone && live) rows[lane] = score;
        __syncthreads();  // the window's emissions are complete
        if (alone) {
            float* const column = rows + TAGS + j;
            float next = live ? column[0] : 0.0f;
#pragma unroll 4
            for (int k = 0; k < count; ++k) {
                const float emission = next;
                next = live && k + 1 < count ? column[(k + 1) * TAGS] : 0.0f;
                float candidate[TAGS];
#pragma unroll
                for (int i = 0; i < TAGS; ++i) candidate[i] = __shfl_sync(ALL_LANES, score, i) + into[i];
                score = tree_max(candidate) + emission;
                if (live) column[k * TAGS] = score;
            }
        }
        __syncthreads();  // the window's alphas are complete
        // The same sums once more, all steps at once: which of them was the maximum? The lowest tag wins ties.
        for (int k = group; grouped && k < count; k += groups) {
            float top = rows[k * TAGS] + into[0];
            int best = 0;
#pragma unroll
            for (int i = 1; i < TAGS; ++i) {
                const float candidate = rows[k * TAGS + i] + into[i];
                best = candidate > top ? i : best;
                top = fmaxf(top, candidate);
            }
            back[k * TAGS + j] = (unsigned char)best;
        }
        __syncthreads();  // the window's back pointers are complete
        const int first_chunk = (base - 1) / STEPS;
        for (int cell = threadIdx.x; cell < CHUNKS(count) * TAGS; cell += blockDim.x) {
            const int from = cell / TAGS * STEPS;
            int k = (from + STEPS < count ? from + STEPS : count) - 1;
            unsigned word = 0;
            int tag = cell % TAGS;
            for (int shift = 0; k >= from; --k, shift += TAG_BITS) {
                tag = back[k * TAGS + tag];
                word |= (unsigned)tag << shift;
            }
            survivors[first_chunk * TAGS + cell] = word;
        }
    }

    if (alone) {
        float top = live ? score + end_y[j] : -INFINITY_F;
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
        if (lane == 0) {
            scores_b[b] = top;
            told[MOST_WARPS] = (unsigned)last_tag;
        }
    }
    const unsigned any_bad = __ballot_sync(ALL_LANES, bad);
    if (lane == 0) told[warp] = any_bad;
    __syncthreads();  // survivors, the last tag and what is bad were written by other threads
    unsigned all_bad = 0;
    for (int i = 0; i < warps; ++i) all_bad |= told[i];
    if (all_bad) {  // the whole block leaves together
        for (int t = threadIdx.x; t < max_steps; t += blockDim.x) out[t] = -1;
        if (alone && lane == 0) scores_b[b] = __int_as_float(0x7fc00000);
        return;
    }
    const int last_tag = (int)told[MOST_WARPS], chunks = CHUNKS(steps - 1);
    if (threadIdx.x == 0) {  // backwards, STEPS tags per hop
        int tag = last_tag;
        for (int chunk = chunks - 1; chunk >= 0; --chunk) {
            const unsigned word = survivors[chunk * TAGS + tag];
            chosen[chunk] = word;
            const int held = chunk == chunks - 1 ? steps - 1 - chunk * STEPS : STEPS;
            tag = (int)((word >> (TAG_BITS * (held - 1))) & TAG_MASK);
        }
    }
    __syncthreads();  // chosen was written by one thread
    for (int t = threadIdx.x; t < max_steps; t += blockDim.x) {  // coalesced expansion
        int tag = -1;
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
