// Runs recorded launches on a CUDA device and compares what they leave behind; compute-sanitizer's job.
// Usage: replay_device RECORDING IMAGES_FOLDER [--unwritten] [--plant-short | --plant-unwritten]
// Exits 0 when all is equal, 1 when a result differs, 2 on a file or driver error.
//
// Each buffer is an allocation of exactly its size. By default it is filled with garbage first and every
// byte is compared, also those that no launch may touch. With --unwritten (for initcheck) only what the
// recording knows as written goes up and only what it knows as written comes back, so that memory the
// host never wrote is memory initcheck never saw written.
// Confidences go through exp and log, where a device rounds otherwise than the host of the recording:
// their launches carry a tolerance, for float32 results, relative to max(1, |expected|).
// The --plant options damage the first launch, to see whether the sanitizer notices.
//
// The driver is opened at run time, so this needs no CUDA toolkit:  g++ -std=c++17 replay_device.cpp -ldl
#include "recording.h"

#include <dirent.h>
#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <map>

namespace {

using recording::Argument;
using recording::Launch;
using Pointer = unsigned long long;

void* driver_function(const char* name) {
    static void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    void* function = library ? dlsym(library, name) : nullptr;
    if (!function) {
        std::fprintf(stderr, "no driver function %s: %s\n", name, dlerror());
        std::exit(2);
    }
    return function;
}

template <class... Args>
void call(const char* name, Args... args) {
    static std::map<std::string, void*> known;
    void*& function = known[name];
    if (!function) function = driver_function(name);
    const int status = reinterpret_cast<int (*)(Args...)>(function)(args...);
    if (status) {
        const char* text = nullptr;
        reinterpret_cast<int (*)(int, const char**)>(driver_function("cuGetErrorString"))(status, &text);
        std::fprintf(stderr, "%s failed with code %d: %s\n", name, status, text ? text : "unknown");
        std::exit(2);
    }
}

struct Options {
    bool unwritten = false, plant_short = false, plant_unwritten = false;
};

std::vector<std::vector<char>> read_images(const std::string& folder) {
    std::vector<std::vector<char>> images;
    DIR* listing = opendir(folder.c_str());
    while (dirent* entry = listing ? readdir(listing) : nullptr) {
        const std::string file = entry->d_name;
        if (file.size() < 6 || file.compare(file.size() - 6, 6, ".cubin")) continue;
        FILE* opened = std::fopen((folder + "/" + file).c_str(), "rb");
        if (!opened) continue;
        std::vector<char> image;
        for (int byte; (byte = std::fgetc(opened)) != EOF;) image.push_back((char)byte);
        std::fclose(opened);
        images.push_back(image);
    }
    if (listing) closedir(listing);
    if (images.empty()) {
        std::fprintf(stderr, "no .cubin in %s\n", folder.c_str());
        std::exit(2);
    }
    return images;
}

class Replay {
   public:
    Replay(const std::string& folder, Options options) : options_(options), images_(read_images(folder)) {
        int device = 0;
        void* context = nullptr;
        call("cuInit", 0u);
        call("cuDeviceGet", &device, 0);
        call("cuDevicePrimaryCtxRetain", &context, device);
        call("cuCtxPushCurrent_v2", context);
        call("cuStreamCreate", &stream_, 0u);
        for (const auto& image : images_) {
            modules_.push_back(nullptr);
            call("cuModuleLoadData", &modules_.back(), static_cast<const void*>(image.data()));
        }
    }

    ~Replay() {
        call("cuStreamDestroy_v2", stream_);
        for (void* module : modules_) call("cuModuleUnload", module);
        call("cuDevicePrimaryCtxRelease_v2", 0);
    }

    bool run(const Launch& launch, bool first) {
        std::vector<Pointer> memory;
        std::vector<uint64_t> values;
        std::vector<void*> params;
        for (const Argument& argument : launch.arguments) {
            uint64_t value = argument.scalar;
            if (argument.is_buffer) {
                memory.push_back(upload(argument, first && memory.empty()));
                value = memory.back();
            }
            values.push_back(value);
        }
        for (uint64_t& value : values) params.push_back(&value);
        const uint32_t* g = launch.geometry;
        call("cuLaunchKernel", function(launch.function), g[0], g[1], g[2], g[3], g[4], g[5],
             (unsigned)launch.shared_bytes, stream_, params.data(), static_cast<void**>(nullptr));
        call("cuStreamSynchronize", stream_);
        bool same = true;
        size_t next = 0;
        for (size_t i = 0; i < launch.arguments.size(); ++i)
            if (launch.arguments[i].is_buffer) same = check(launch, i, memory[next++]) && same;
        for (Pointer pointer : memory) call("cuMemFree_v2", pointer);
        return same;
    }

    double largest() const { return largest_; }

   private:
    Options options_;
    std::vector<std::vector<char>> images_;
    std::vector<void*> modules_;
    std::map<std::string, void*> functions_;
    void* stream_ = nullptr;
    double largest_ = 0;

    void* function(const std::string& name) {
        void*& found = functions_[name];
        using Get = int (*)(void**, void*, const char*);
        const Get get = reinterpret_cast<Get>(driver_function("cuModuleGetFunction"));
        // A kernel is in one of the images; the others answer "not found".
        for (size_t i = 0; !found && i < modules_.size(); ++i) {
            const std::string text(images_[i].begin(), images_[i].end());
            if (text.find(name) != std::string::npos) get(&found, modules_[i], name.c_str());
        }
        if (!found) {
            std::fprintf(stderr, "no image has the kernel %s\n", name.c_str());
            std::exit(2);
        }
        return found;
    }

    Pointer upload(const Argument& argument, bool damaged) {
        Pointer pointer = 0;
        const bool is_short = damaged && options_.plant_short;
        call("cuMemAlloc_v2", &pointer, (size_t)(is_short ? 1 : argument.size));
        if (is_short || (damaged && options_.plant_unwritten)) return pointer;
        if (!options_.unwritten) {
            const auto image = argument.image(argument.before);
            copy_in(pointer, image.data(), image.size());
            return pointer;
        }
        const unsigned char* next = argument.before.values.data();
        for (const recording::Run& run : argument.before.runs) {
            copy_in(pointer + run.first, next, run.count);
            next += run.count;
        }
        return pointer;
    }

    void copy_in(Pointer target, const unsigned char* source, size_t count) {
        call("cuMemcpyHtoDAsync_v2", target, static_cast<const void*>(source), count, stream_);
        call("cuStreamSynchronize", stream_);
    }

    void copy_out(unsigned char* target, Pointer source, size_t count) {
        call("cuMemcpyDtoHAsync_v2", static_cast<void*>(target), source, count, stream_);
    }

    bool check(const Launch& launch, size_t index, Pointer pointer) {
        const Argument& argument = launch.arguments[index];
        const auto expected = argument.image(argument.after);
        std::vector<unsigned char> result(argument.size, recording::kGarbage);
        if (options_.unwritten)
            for (const recording::Run& run : argument.after.runs)
                copy_out(result.data() + run.first, pointer + run.first, run.count);
        else
            copy_out(result.data(), pointer, result.size());
        call("cuStreamSynchronize", stream_);
        const double tolerance = argument.changed ? launch.tolerance : 0;
        for (size_t at = 0; at < result.size(); at += tolerance > 0 ? 4 : 1) {
            const size_t width = tolerance > 0 ? std::min<size_t>(4, result.size() - at) : 1;
            if (!std::memcmp(&result[at], &expected[at], width)) continue;
            if (width == 4 && is_close(&result[at], &expected[at], tolerance)) continue;
            std::printf("WRONG RESULT: %s, argument %zu, byte %zu of %zu:", launch.function.c_str(), index,
                        at, result.size());
            for (size_t k = 0; k < width; ++k) std::printf(" %02x", result[at + k]);
            std::printf(" instead of");
            for (size_t k = 0; k < width; ++k) std::printf(" %02x", expected[at + k]);
            std::printf("\n");
            return false;
        }
        return true;
    }

    bool is_close(const unsigned char* result, const unsigned char* expected, double tolerance) {
        float a, b;
        std::memcpy(&a, result, 4);
        std::memcpy(&b, expected, 4);
        if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
        const double difference = std::fabs((double)a - b) / std::max(1.0, std::fabs((double)b));
        if (!(difference <= tolerance)) return false;
        largest_ = std::max(largest_, difference);
        return true;
    }
};

}  // namespace

int main(int argc, char** argv) {
    Options options;
    std::vector<const char*> files;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        if (word == "--unwritten") options.unwritten = true;
        else if (word == "--plant-short") options.plant_short = true;
        else if (word == "--plant-unwritten") options.plant_unwritten = true;
        else files.push_back(argv[i]);
    }
    if (files.size() != 2) {
        std::fprintf(stderr, "usage: replay_device RECORDING IMAGES_FOLDER [--unwritten]\n");
        return 2;
    }
    const auto launches = recording::Reader(files[0]).launches();
    Replay replay(files[1], options);
    size_t wrong = 0;
    for (size_t i = 0; i < launches.size(); ++i) wrong += !replay.run(launches[i], i == 0);
    std::printf("%zu launches, ", launches.size());
    if (wrong) std::printf("%zu differ", wrong);
    else std::printf("all equal (confidences differ by at most %.1e)", replay.largest());
    std::printf("\n");
    return wrong || launches.empty() ? 1 : 0;
}
