// How sure a decoded path is: forward-backward, one block per sequence, lane j = tag j.
//
// Compile-time: TAGS (2..32), VARIANT (suffix of the kernel's name). Like the other sources it holds no
// host code, and DYNAMIC_SHARED is its only hook for the host shim.
//
// Reads the path that linear_viterbi wrote on the same stream. The path is known beforehand, so of each
// step only the chosen tag's sums are kept, in the output itself. One warp goes forwards and one backwards
// at the same time, each in windows whose emissions all threads bring to shared memory.
//
// A number is a float32 and an exponent of its own: sums stay exact in scale however long the sequence is
// and however far apart scores are, and no step takes a logarithm or an exponential.
#include "common.cuh"
#define LOG2_E 1.4426950408889634
#define LN_2 0.693147181f
// Steps of a window; the host computes the same shared memory.
#define WINDOW (TAGS <= 16 ? 64 : 32)

// value = mantissa * 2^exponent, the mantissa in [1, 2) or 0.
struct Scaled {
    float mantissa;
    int exponent;
};
// Of 0: below the sum of any numbers' exponents, and a few of them still fit an int.
#define ZERO_EXPONENT (-(1 << 28))
// Scores beyond 1.1e4 count as that much.
#define MOST_EXPONENT (1 << 14)

__device__ __forceinline__ Scaled normal(float mantissa, int exponent) {
    const int bits = __float_as_int(mantissa);
    Scaled value;
    value.exponent = mantissa > 0.0f ? exponent + (bits >> 23) - 127 : ZERO_EXPONENT;
    value.mantissa = mantissa > 0.0f ? __int_as_float((bits & 0x7fffff) | 0x3f800000) : 0.0f;
    return value;
}

__device__ __forceinline__ Scaled exp_of(float score) {
    if (score == -INFINITY_F) return normal(0.0f, 0);
    const double most = MOST_EXPONENT;
    const double log2 = fmin(fmax((double)score * LOG2_E, -most), most);
    const int exponent = (int)floor(log2);
    return normal(exp2f((float)(log2 - (double)exponent)), exponent);
}

__device__ __forceinline__ Scaled product(Scaled a, Scaled b) {
    return normal(a.mantissa * b.mantissa, a.exponent + b.exponent);
}

// Sum over lanes of their value times this lane's factors.
__device__ __forceinline__ Scaled sum_of_lanes(Scaled value, const Scaled (&factors)[TAGS]) {
    float mantissas[TAGS];
    int exponents[TAGS];
#pragma unroll
    for (int i = 0; i < TAGS; ++i) {
        mantissas[i] = __shfl_sync(ALL_LANES, value.mantissa, i) * factors[i].mantissa;
        exponents[i] = __shfl_sync(ALL_LANES, value.exponent, i) + factors[i].exponent;
    }
    int top = exponents[0];
#pragma unroll
    for (int i = 1; i < TAGS; ++i) top = exponents[i] > top ? exponents[i] : top;
    float sums[3] = {0.0f, 0.0f, 0.0f};  // shorter chains
#pragma unroll
    for (int i = 0; i < TAGS; ++i) {
        const int below = exponents[i] - top;  // what is below float32's range adds nothing
        sums[i % 3] += mantissas[i] * __int_as_float(((below < -127 ? -127 : below) + 127) << 23);
    }
    return normal(sums[0] + (sums[1] + sums[2]), top);
}

extern "C" __global__ void NAMED(linear_confidence, VARIANT)(
    const float* __restrict__ emissions,   // (rows, TAGS)
    const int* __restrict__ rows_bt,       // (batch, max_steps) row of each step; null: b * max_steps + t
    const int* __restrict__ lengths_b,
    const float* __restrict__ start_y, const float* __restrict__ transitions_yy,
    const float* __restrict__ end_y,
    int max_steps, float scale,            // scale = 1 / temperature
    const int* __restrict__ tags_bt,       // (batch, max_steps) the path to judge
    // Logs, all 0 past the end. P(tags of steps s..e) = exp(forward[s] + link[s+1] + ... + link[e] + backward[e])
    float* __restrict__ forward_bt, float* __restrict__ link_bt, float* __restrict__ backward_bt,
    float* __restrict__ confidence_bt,     // probability of the path's tag at t; 0 past the end
    float* __restrict__ log_total_b)       // log of the partition sum; 0 for an empty sequence
{
    DYNAMIC_SHARED(double, shared);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int b = blockIdx.x;
    // Shared memory: emissions of two windows, the path's tags in them, the total, what warps tell each other.
    Scaled* const windows = (Scaled*)shared;
    Scaled* const told_total = windows + 2 * WINDOW * TAGS;
    int* const window_tags = (int*)(told_total + 1);
    int* const told = window_tags + 2 * WINDOW;

    const int given = lengths_b[b];
    const int steps = given < 0 ? 0 : (given > max_steps ? max_steps : given);
    const long long base = (long long)b * max_steps;
    for (int t = steps + threadIdx.x; t < max_steps; t += blockDim.x) {
        forward_bt[base + t] = 0.0f;
        link_bt[base + t] = 0.0f;
        backward_bt[base + t] = 0.0f;
        confidence_bt[base + t] = 0.0f;
    }
    if (steps == 0) {  // the whole block leaves together
        if (threadIdx.x == 0) log_total_b[b] = 0.0f;
        return;
    }
    const bool live = lane < TAGS;
    const int j = live ? lane : 0;  // idle lanes compute tag 0 and publish nothing
    // Neighbouring warps of different blocks share a scheduler, so other warps work in other blocks.
    const int first_warp = (b + (b >> 7)) % warps;
    const bool ahead = warp == first_warp, behind = warp == (first_warp + 1) % warps;
    auto emission = [&](int t, int tag) {
        const long long row = rows_bt ? rows_bt[base + t] : base + t;
        return scale * emissions[row * TAGS + tag];
    };
    Scaled factors[TAGS];  // transitions into j on the way forwards, out of j on the way back
#pragma unroll
    for (int i = 0; i < TAGS; ++i)
        factors[i] = exp_of(scale * transitions_yy[behind ? j * TAGS + i : i * TAGS + j]);
    Scaled forward = exp_of(scale * start_y[j]), backward = exp_of(scale * end_y[j]);
    bool bad = false;
    for (int done = 0; done < steps; done += WINDOW) {
        const int count = steps - done < WINDOW ? steps - done : WINDOW;
        // Entry k of the first window is step done + k, of the second steps - 1 - done - k.
        for (int cell = threadIdx.x; cell < 2 * count * TAGS; cell += blockDim.x) {
            const int way = cell >= count * TAGS, place = cell - way * count * TAGS;
            const int k = place / TAGS, t = way ? steps - 1 - done - k : done + k;
            const float value = emission(t, place % TAGS);
            bad |= !(value < INFINITY_F);
            windows[way * WINDOW * TAGS + place] = exp_of(value);
            if (place % TAGS == 0) window_tags[way * WINDOW + k] = tags_bt[base + t];
        }
        __syncthreads();  // the windows are complete
        // Sums of the path's tag wait in the outputs: mantissa and exponent.
        if (ahead) {
            for (int k = 0; k < count; ++k) {
                const Scaled now = windows[k * TAGS + j];
                const int tag = window_tags[k];
                if (done + k) forward = sum_of_lanes(forward, factors);
                forward = product(forward, now);
                if (live && tag == j) {
                    forward_bt[base + done + k] = forward.mantissa;
                    link_bt[base + done + k] = __int_as_float(forward.exponent);
                }
            }
        }
        if (behind) {
            for (int k = 0; k < count; ++k) {
                const int t = steps - 1 - done - k;
                const Scaled now = windows[(WINDOW + k) * TAGS + j];
                if (live && window_tags[WINDOW + k] == j) {
                    backward_bt[base + t] = backward.mantissa;
                    confidence_bt[base + t] = __int_as_float(backward.exponent);
                }
                if (t) backward = sum_of_lanes(product(backward, now), factors);
            }
        }
        __syncthreads();  // the windows may be filled again, and the outputs hold the sums
    }
    if (ahead) {
#pragma unroll
        for (int i = 0; i < TAGS; ++i) factors[i] = exp_of(scale * end_y[i]);
        const Scaled total = sum_of_lanes(forward, factors);
        if (lane == 0) *told_total = total;
    }
    const unsigned any_bad = __ballot_sync(ALL_LANES, bad);
    if (lane == 0) told[warp] = any_bad != 0;
    __syncthreads();  // the total and what is bad
    int broken = 0;
    for (int i = 0; i < warps; ++i) broken |= told[i];
    const Scaled total = *told_total;
    const float log2_total = log2f(total.mantissa);
    if (threadIdx.x == 0)
        log_total_b[b] = broken ? __int_as_float(0x7fc00000) : (float)(((double)log2_total + total.exponent) / LOG2_E);

    // Step t's numbers are relative to its own forward sum: what is left is small however long the sequence
    // is. From the end, since a step looks at the one before it.
    auto sum_at = [&](int t) {
        Scaled sum;
        sum.mantissa = forward_bt[base + t];
        sum.exponent = __float_as_int(link_bt[base + t]);
        if (sum.mantissa > 0.0f) return sum;
        sum.mantissa = 1.0f;  // a path of probability 0: any number will do
        sum.exponent = 0;
        return sum;
    };
    const Scaled last = sum_at(steps - 1);
    const float log_last = (log2f(last.mantissa) - log2_total + (float)(last.exponent - total.exponent)) * LN_2;
    for (int start = (steps - 1) / (int)blockDim.x * (int)blockDim.x; start >= 0; start -= blockDim.x) {
        const int t = start + threadIdx.x;
        float forward_log = 0.0f, link = 0.0f, backward_log = 0.0f, sure = 0.0f;
        if (t < steps && !broken) {
            const Scaled here = sum_at(t);
            const float mantissa = forward_bt[base + t], beyond = backward_bt[base + t];
            const int exponent = __float_as_int(confidence_bt[base + t]);
            forward_log = mantissa > 0.0f ? log_last : -INFINITY_F;
            backward_log = (log2f(here.mantissa) + log2f(beyond) - log2f(last.mantissa) +
                            (float)(here.exponent + exponent - last.exponent)) * LN_2;
            if (beyond == 0.0f) backward_log = -INFINITY_F;
            const int from = t ? tags_bt[base + t - 1] : -1, to = tags_bt[base + t];
            if (from >= 0 && from < TAGS && to >= 0 && to < TAGS) {
                const Scaled before = sum_at(t - 1);
                const float rise = (log2f(here.mantissa) - log2f(before.mantissa) +
                                    (float)(here.exponent - before.exponent)) * LN_2;
                link = (scale * transitions_yy[from * TAGS + to] + emission(t, to)) - rise;
            }
            sure = mantissa * beyond / total.mantissa *
                   exp2f((float)(here.exponent + exponent - total.exponent));
        }
        __syncthreads();  // all have read what some overwrite
        if (t < steps) {
            forward_bt[base + t] = forward_log;
            link_bt[base + t] = link;
            backward_bt[base + t] = backward_log;
            confidence_bt[base + t] = sure;
        }
    }
}
