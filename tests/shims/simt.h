// Runs a CUDA kernel's real source on a CPU: a test shim, never shipped.
//
// Two ways to run the threads of a block, one meaning:
//   default          one fiber per CUDA thread, in lane order (seed 0) or in a seeded random order
//                    that is drawn again for every round; works with AddressSanitizer
//   -DSIMT_THREADS   one std::thread per CUDA thread, for ThreadSanitizer (races on shared memory)
// It stops the process on mistakes that a GPU lets pass: lanes missing from a mask, lanes that meet in
// different collectives, deadlock, too much shared memory. A block's shared memory is a fresh heap
// allocation of exactly the launched size, filled with 0xCB.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>
#ifdef SIMT_THREADS
#include <condition_variable>
#include <mutex>
#include <thread>
#else
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(simt::self().block->shared)

#if defined(SIMT_THREADS) && defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace simt {

constexpr size_t kSharedLimit = 48 << 10;  // more needs an opt-in that the kernels do not make

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

[[noreturn]] inline void fail(const char* why, long a = -1, long b = -1) {
    std::fprintf(stderr, "SIMT ERROR: %s (%ld, %ld)\n", why, a, b);
    std::abort();
}

// One rendezvous of the lanes named by a mask. Values are double-buffered by phase: nobody can enter
// phase p + 2 before everybody has left phase p, so one wait per collective is enough.
struct Meeting {
    unsigned mask = 0;
    int arrived[2] = {0, 0}, collective[2] = {0, 0};
    uint64_t values[2][32] = {}, phase[32] = {}, done = 0;
};

struct Block {
    unsigned char* shared = nullptr;
    unsigned threads = 0, exited = 0, barrier_arrived = 0;
    uint64_t barrier_done = 0, progress = 0;
    std::vector<std::vector<std::unique_ptr<Meeting>>> warps;
    std::vector<uint64_t> barrier_phase;
    std::vector<char> gone;
#ifdef SIMT_THREADS
    std::mutex mutex;
    std::condition_variable wake;
#endif
};

struct Thread {
    Block* block = nullptr;
    Dim3 thread_index, block_index, block_size, grid_size;
    unsigned linear = 0;
};

#ifdef SIMT_THREADS
inline Thread*& current() {
    static thread_local Thread* thread;
    return thread;
}
struct Lock {
    std::unique_lock<std::mutex> held;
    explicit Lock(Block* block) : held(block->mutex) {}
};
template <class Ready>
void wait_until(Block* block, Lock& lock, Ready ready) { block->wake.wait(lock.held, ready); }
inline void advanced(Block* block) { block->wake.notify_all(); }
#else
inline Thread*& current() {
    static Thread* thread;
    return thread;
}
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Thread thread;
    // Whether what it waits for has come; a fiber that still waits is not switched to.
    bool (*ready)(void*) = nullptr;
    void* what = nullptr;
};
inline ucontext_t& scheduler() {
    static ucontext_t context;
    return context;
}
inline Fiber*& running() {
    static Fiber* fiber;
    return fiber;
}
struct Lock {
    explicit Lock(Block*) {}
};
template <class Ready>
void wait_until(Block*, Lock&, Ready ready) {
    if (ready()) return;
    Fiber* me = running();
    me->what = &ready;
    me->ready = [](void* what) { return (*static_cast<Ready*>(what))(); };
    swapcontext(&me->context, &scheduler());
    me->ready = nullptr;
}
inline void advanced(Block* block) { ++block->progress; }
#endif
inline Thread& self() { return *current(); }

// Shuffles and ballots exchange registers but order no memory; only __syncwarp and __syncthreads do.
// Under ThreadSanitizer their rendezvous must therefore create no happens-before edge, or it would
// hide a missing __syncwarp.
struct OrdersNoMemory {
#if defined(SIMT_THREADS) && defined(__SANITIZE_THREAD__)
    bool active;
    explicit OrdersNoMemory(bool on) : active(on) {
        if (!active) return;
        AnnotateIgnoreSyncBegin("", 0);
        AnnotateIgnoreReadsBegin("", 0);
        AnnotateIgnoreWritesBegin("", 0);
    }
    ~OrdersNoMemory() {
        if (!active) return;
        AnnotateIgnoreWritesEnd("", 0);
        AnnotateIgnoreReadsEnd("", 0);
        AnnotateIgnoreSyncEnd("", 0);
    }
#else
    explicit OrdersNoMemory(bool) {}
#endif
};

enum Collective { kSyncWarp = 1, kShuffle, kShuffleXor, kBallot };

struct Published {
    uint64_t values[32];
};

inline Meeting& meeting_of(Block* block, unsigned warp, unsigned mask) {
    for (auto& meeting : block->warps[warp])
        if (meeting->mask == mask) return *meeting;
    block->warps[warp].emplace_back(new Meeting);
    block->warps[warp].back()->mask = mask;
    return *block->warps[warp].back();
}

inline Published meet(unsigned mask, Collective collective, uint64_t value) {
    Thread& me = self();
    Block* block = me.block;
    const unsigned lane = me.linear & 31, warp = me.linear >> 5;
    if (!(mask >> lane & 1)) fail("the calling lane is not in its own mask", lane, collective);
    const unsigned present = std::min(32u, block->threads - 32 * warp);
    if (present < 32 && mask >> present) fail("the mask names lanes that do not exist", lane, collective);
    OrdersNoMemory scope(collective != kSyncWarp);
    Lock lock(block);
    for (unsigned other = 0; other < present; ++other)
        if ((mask >> other & 1) && block->gone[32 * warp + other])
            fail("the mask names a lane that has returned", lane, other);
    Meeting& meeting = meeting_of(block, warp, mask);
    const uint64_t phase = meeting.phase[lane]++;
    const int side = phase & 1;
    if (meeting.arrived[side] == 0)
        meeting.collective[side] = collective;
    else if (meeting.collective[side] != collective)
        fail("lanes met in different collectives", meeting.collective[side], collective);
    meeting.values[side][lane] = value;
    if (++meeting.arrived[side] == __builtin_popcount(mask)) {
        meeting.arrived[side] = 0;
        meeting.done = phase + 1;
        advanced(block);
    } else {
        wait_until(block, lock, [&] { return meeting.done >= phase + 1; });
    }
    Published published;
    std::memcpy(published.values, meeting.values[side], sizeof published.values);
    return published;
}

template <class T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T>
T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

#ifdef SIMT_THREADS
template <class Body>
void run_threads(Block& block, std::vector<Thread>& threads, Body& body, unsigned) {
    std::vector<std::thread> pool;
    for (auto& thread : threads)
        pool.emplace_back([&block, &body, &thread] {
            current() = &thread;
            body();
            std::lock_guard<std::mutex> hold(block.mutex);
            block.gone[thread.linear] = 1;
            block.wake.notify_all();
        });
    for (auto& member : pool) member.join();
}
#else
template <class Body>
void fiber_main(unsigned high, unsigned low) {
    Body& body = *reinterpret_cast<Body*>((uintptr_t)high << 32 | low);
    body();
    Block* block = self().block;
    block->gone[self().linear] = 1;
    ++block->exited;
    ++block->progress;
}

// <random> would double the compile time.
struct Random {
    uint64_t state;
    unsigned below(unsigned limit) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (unsigned)((state >> 33) % limit);
    }
};

template <class Body>
void run_threads(Block& block, std::vector<Thread>& threads, Body& body, unsigned seed) {
    constexpr size_t stack_bytes = 128 << 10;
    std::vector<Fiber> fibers(threads.size());
    std::vector<Fiber*> order;
    const uintptr_t address = reinterpret_cast<uintptr_t>(&body);
    for (size_t i = 0; i < threads.size(); ++i) {
        Fiber& fiber = fibers[i];
        fiber.thread = threads[i];
        fiber.stack.reset(new char[stack_bytes]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = stack_bytes;
        fiber.context.uc_link = &scheduler();
        makecontext(&fiber.context, reinterpret_cast<void (*)()>(&fiber_main<Body>), 2,
                    (unsigned)(address >> 32), (unsigned)address);
        order.push_back(&fiber);
    }
    Random random{seed};
    while (block.exited < block.threads) {
        if (seed)
            for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
        const uint64_t before = block.progress;
        for (Fiber* fiber : order) {
            if (block.gone[fiber->thread.linear]) continue;
            if (fiber->ready && !fiber->ready(fiber->what)) continue;
            running() = fiber;
            current() = &fiber->thread;
            swapcontext(&scheduler(), &fiber->context);
        }
        if (block.progress == before) fail("deadlock: every live lane waits");
    }
}
#endif

template <class Body>
void launch(Dim3 grid, Dim3 size, size_t shared_bytes, unsigned seed, Body body) {
    if (shared_bytes > kSharedLimit) fail("more shared memory than a launch may ask for", shared_bytes);
    if (size.x * size.y * size.z > 1024) fail("more threads than a block may have", size.x);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                Block block;
                block.threads = size.x * size.y * size.z;
                block.warps.resize((block.threads + 31) / 32);
                block.barrier_phase.assign(block.threads, 0);
                block.gone.assign(block.threads, 0);
                std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes]);
                std::memset(shared.get(), 0xCB, shared_bytes);
                block.shared = shared.get();
                std::vector<Thread> threads(block.threads);
                for (unsigned i = 0; i < block.threads; ++i)
                    threads[i] = {&block, {i % size.x, i / size.x % size.y, i / (size.x * size.y)},
                                  {x, y, z}, size, grid, i};
                run_threads(block, threads, body, seed ? seed + x : 0);
            }
}

// Calls a kernel with the driver's argument convention: params[i] points to the i-th argument.
template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** params, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<Args>*>(params[I])...);
}
template <class... Args>
void launch_kernel(void (*kernel)(Args...), const unsigned* geometry, size_t shared_bytes, void** params,
                   unsigned seed) {
    launch({geometry[0], geometry[1], geometry[2]}, {geometry[3], geometry[4], geometry[5]}, shared_bytes,
           seed, [=] { call(kernel, params, std::index_sequence_for<Args...>{}); });
}

}  // namespace simt

#define threadIdx (simt::self().thread_index)
#define blockIdx (simt::self().block_index)
#define blockDim (simt::self().block_size)
#define gridDim (simt::self().grid_size)

inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::meet(mask, simt::kSyncWarp, 0); }

inline void __syncthreads() {
    simt::Block* block = simt::self().block;
    simt::Lock lock(block);
    const uint64_t phase = block->barrier_phase[simt::self().linear]++;
    if (++block->barrier_arrived == block->threads) {
        block->barrier_arrived = 0;
        block->barrier_done = phase + 1;
        simt::advanced(block);
    } else {
        simt::wait_until(block, lock, [&] { return block->barrier_done >= phase + 1; });
    }
}

namespace simt {
template <class T>
T read_lane(const Published& published, unsigned mask, unsigned source) {
    if (!(mask >> source & 1)) fail("a shuffle reads a lane outside its mask", source, mask);
    return from_bits<T>(published.values[source]);
}
}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    return simt::read_lane<T>(simt::meet(mask, simt::kShuffle, simt::to_bits(value)), mask, source & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    const unsigned source = (simt::self().linear & 31) ^ lanes;
    return simt::read_lane<T>(simt::meet(mask, simt::kShuffleXor, simt::to_bits(value)), mask, source);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const auto published = simt::meet(mask, simt::kBallot, predicate != 0);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) bits |= (unsigned)published.values[lane] << lane;
    return bits;
}
inline float __int_as_float(int bits) { return simt::from_bits<float>((unsigned)bits); }
inline int __float_as_int(float value) { return (int)simt::to_bits(value); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
