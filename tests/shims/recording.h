// Recorded launches, as `shim_device.py` writes them. All numbers are little-endian.
//   u32 launches; each:
//     u32 + name; u32 geometry[6]; u64 shared bytes; f64 tolerance (0: results equal byte for byte);
//     u32 arguments; each: u32 0 + u64 value, or u32 1 + u64 size + before + (u32 0 | u32 1 + after)
//   before, after: u32 runs; u64 first, u64 count of each; their bytes one after another
// Runs are the bytes that somebody had written: what is left out holds garbage, before as after, and no
// result may depend on it. A buffer without `after` was not changed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace recording {

constexpr unsigned char kGarbage = 0xA5;

struct Run {
    uint64_t first, count;
};

// The written bytes of a buffer.
struct Bytes {
    std::vector<Run> runs;
    std::vector<unsigned char> values;

    void put_into(unsigned char* memory) const {
        const unsigned char* next = values.data();
        for (const Run& run : runs) {
            std::copy(next, next + run.count, memory + run.first);
            next += run.count;
        }
    }
};

struct Argument {
    bool is_buffer = false;
    bool changed = false;
    uint64_t scalar = 0, size = 0;
    Bytes before, after;

    // The whole buffer, garbage where nothing was written.
    std::vector<unsigned char> image(const Bytes& bytes) const {
        std::vector<unsigned char> memory(size, kGarbage);
        bytes.put_into(memory.data());
        return memory;
    }
};

struct Launch {
    std::string function;
    uint32_t geometry[6];
    uint64_t shared_bytes;
    double tolerance;
    std::vector<Argument> arguments;
};

class Reader {
   public:
    explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) stop("cannot be opened");
    }
    ~Reader() { std::fclose(file_); }

    std::vector<Launch> launches() {
        std::vector<Launch> all(number<uint32_t>());
        for (Launch& launch : all) read(launch);
        return all;
    }

   private:
    FILE* file_;

    [[noreturn]] static void stop(const char* what) {
        std::fprintf(stderr, "the recording %s\n", what);
        std::exit(2);
    }

    void fill(void* target, size_t count) {
        if (count && std::fread(target, count, 1, file_) != 1) stop("is cut short");
    }

    template <class T>
    T number() {
        T value;
        fill(&value, sizeof value);
        return value;
    }

    Bytes bytes() {
        Bytes found;
        found.runs.resize(number<uint32_t>());
        fill(found.runs.data(), found.runs.size() * sizeof(Run));
        uint64_t total = 0;
        for (const Run& run : found.runs) total += run.count;
        found.values.resize(total);
        fill(found.values.data(), total);
        return found;
    }

    void read(Launch& launch) {
        launch.function.resize(number<uint32_t>());
        fill(&launch.function[0], launch.function.size());
        fill(launch.geometry, sizeof launch.geometry);
        launch.shared_bytes = number<uint64_t>();
        launch.tolerance = number<double>();
        launch.arguments.resize(number<uint32_t>());
        for (Argument& argument : launch.arguments) {
            argument.is_buffer = number<uint32_t>();
            if (!argument.is_buffer) {
                argument.scalar = number<uint64_t>();
                continue;
            }
            argument.size = number<uint64_t>();
            argument.before = bytes();
            argument.changed = number<uint32_t>();
            argument.after = argument.changed ? bytes() : argument.before;
        }
    }
};

}  // namespace recording
