// How sure a decoded path is: forward-backward in the log domain, one warp per sequence, lane j = tag j.
//
// Compile-time: TAGS (2..32), EMIT_HALF (0 or 1), VARIANT (suffix of the kernel's name). Like the other
// sources it holds no host code, and DYNAMIC_SHARED and HALF_TO_FLOAT are its only hooks for the shim.
//
// Reads the path that linear_viterbi wrote on the same stream. The path is known beforehand, so of each
// step only the chosen tag's forward sum is kept, in the output itself: no shared memory at all.
//
// Every step subtracts its largest forward sum (`shift`), forwards and backwards alike, so that numbers
// stay small however long the sequence is; float32 log-sums of a hundred steps would lose four digits.
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
#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

// All that a step reads from memory is loaded this many steps ahead: a warp issues in order, so a load
// that is used at once holds up the whole step, also where only a result depends on it.
#define AHEAD 4

__device__ __forceinline__ float max_of(const float (&values)[TAGS]) {
    float peak = values[0];
#pragma unroll
    for (int i = 1; i < TAGS; ++i) peak = fmaxf(peak, values[i]);
    return peak;
}

__device__ __forceinline__ float log_sum_exp(const float (&values)[TAGS]) {
    const float peak = max_of(values);
    if (peak == -INFINITY_F) return peak;  // every predecessor is forbidden
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < TAGS; ++i) sum += exp2f((values[i] - peak) * LOG2_E);
    return peak + log2f(sum) * LN_2;
}

extern "C" __global__ void NAMED(linear_confidence, VARIANT)(
    const emit_t* __restrict__ emissions,  // (rows, TAGS)
    const int* __restrict__ rows_bt,       // (batch, max_steps) row of each step; null: b * row_stride + t
    const int* __restrict__ lengths_b,
    const float* __restrict__ start_y, const float* __restrict__ transitions_yy,
    const float* __restrict__ end_y,
    int batch, int max_steps, int row_stride, float scale,  // scale = 1 / temperature
    const int* __restrict__ tags_bt,       // (batch, max_steps) the path to judge
    // Logs, all 0 past the end. P(tags of steps s..e) = exp(forward[s] + link[s+1] + ... + link[e] + backward[e])
    float* __restrict__ forward_bt, float* __restrict__ link_bt, float* __restrict__ backward_bt,
    float* __restrict__ confidence_bt,     // probability of the path's tag at t; 0 past the end
    float* __restrict__ log_total_b)       // log of the partition sum; 0 for an empty sequence
{
    const int lane = threadIdx.x & 31;
    const int b = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (b >= batch) return;  // the whole warp leaves together
    const int given = lengths_b[b];
    const int steps = given < 0 ? 0 : (given > max_steps ? max_steps : given);
    const long long base = (long long)b * max_steps;
    for (int t = steps + lane; t < max_steps; t += 32) {
        forward_bt[base + t] = 0.0f;
        link_bt[base + t] = 0.0f;
        backward_bt[base + t] = 0.0f;
        confidence_bt[base + t] = 0.0f;
    }
    if (steps == 0) {
        if (lane == 0) log_total_b[b] = 0.0f;
        return;
    }
    const bool live = lane < TAGS;
    const int j = live ? lane : 0;  // idle lanes compute tag 0 and publish nothing
    const emit_t* const column = emissions + j;
    const int first_row = b * row_stride;
    auto emission = [&](int t) {
        if (t < 0 || t >= steps) return 0.0f;
        const long long row = rows_bt ? rows_bt[base + t] : first_row + t;
        return scale * TO_FLOAT(column[row * TAGS]);
    };

    auto tag_at = [&](int t) { return t < 0 || t >= steps ? -1 : tags_bt[base + t]; };

    float move[TAGS], values[TAGS], ahead[AHEAD];
    int tags_ahead[AHEAD];
#pragma unroll
    for (int i = 0; i < TAGS; ++i) move[i] = scale * transitions_yy[i * TAGS + j];  // into j
    const float first = emission(0);
    bool bad = !(first < INFINITY_F);
    float forward = scale * start_y[j] + first;
    float shift_sum = 0.0f;
    int tag = tags_bt[base];
    if (live && tag == j) {
        forward_bt[base] = forward;
        link_bt[base] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
        ahead[k] = emission(1 + k);
        tags_ahead[k] = tag_at(1 + k);
    }
    for (int chunk = 1; chunk < steps; chunk += AHEAD) {
        float now[AHEAD];
        int tags_now[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            now[k] = ahead[k];
            tags_now[k] = tags_ahead[k];
            ahead[k] = emission(chunk + AHEAD + k);
            tags_ahead[k] = tag_at(chunk + AHEAD + k);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int t = chunk + k;
            if (t >= steps) break;  // uniform in the warp
#pragma unroll
            for (int i = 0; i < TAGS; ++i) values[i] = __shfl_sync(ALL_LANES, forward, i);
            const float peak = max_of(values);
            const float shift = peak == -INFINITY_F ? 0.0f : peak;  // no legal path so far
#pragma unroll
            for (int i = 0; i < TAGS; ++i) values[i] = (values[i] - shift) + move[i];
            forward = log_sum_exp(values) + now[k];
            bad |= !(now[k] < INFINITY_F);
            shift_sum += shift;
            float taken = move[0];  // from the path's tag before; a register cannot be indexed
#pragma unroll
            for (int i = 1; i < TAGS; ++i) taken = i == tag ? move[i] : taken;
            tag = tags_now[k];
            if (live && tag == j) {
                forward_bt[base + t] = forward;
                link_bt[base + t] = (taken + now[k]) - shift;
            }
            if (lane == 0) confidence_bt[base + t] = shift;  // for the way back
        }
    }
    const float final = forward + scale * end_y[j];
#pragma unroll
    for (int i = 0; i < TAGS; ++i) values[i] = __shfl_sync(ALL_LANES, final, i);
    const float total = log_sum_exp(values);
    const bool broken = __ballot_sync(ALL_LANES, live && bad);
    if (lane == 0) log_total_b[b] = broken ? __int_as_float(0x7fc00000) : total + shift_sum;
    __syncwarp(ALL_LANES);  // the shifts were written by lane 0

#pragma unroll
    for (int i = 0; i < TAGS; ++i) move[i] = scale * transitions_yy[j * TAGS + i];  // out of j
    float backward = scale * end_y[j];
    float shifts_ahead[AHEAD], forwards_ahead[AHEAD];
    auto load = [&](int k, int t) {
        ahead[k] = emission(t);
        tags_ahead[k] = tag_at(t);
        // Step 0 has no shift. The forward sum was written by this very lane.
        shifts_ahead[k] = t > 0 ? confidence_bt[base + t] : 0.0f;
        forwards_ahead[k] = live && tags_ahead[k] == j ? forward_bt[base + t] : 0.0f;
    };
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) load(k, steps - 1 - k);
    for (int chunk = steps - 1; chunk >= 0; chunk -= AHEAD) {
        float now[AHEAD], shifts[AHEAD], forwards[AHEAD];
        int tags_now[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            now[k] = ahead[k];
            tags_now[k] = tags_ahead[k];
            shifts[k] = shifts_ahead[k];
            forwards[k] = forwards_ahead[k];
            load(k, chunk - AHEAD - k);
        }
        __syncwarp(ALL_LANES);  // every lane has read the shifts that some of them overwrite
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) {
            const int t = chunk - k;
            if (t < 0) break;  // uniform in the warp
            if (live && tags_now[k] == j) {
                const float chosen = forwards[k] - total;
                forward_bt[base + t] = chosen;
                backward_bt[base + t] = backward;
                confidence_bt[base + t] = broken ? 0.0f : exp2f((chosen + backward) * LOG2_E);
            }
            if (t == 0) break;
            const float onward = (backward + now[k]) - shifts[k];
#pragma unroll
            for (int i = 0; i < TAGS; ++i) values[i] = __shfl_sync(ALL_LANES, onward, i) + move[i];
            backward = log_sum_exp(values);
        }
    }
}
