// CUDA on the host, as far as csrc/cuda needs it: kernels are compiled as C++ and run block by block. The threads of a
// block are coroutines (ucontext) that stop at barriers and shuffles; a barrier that not all threads of a block, or a
// shuffle that not all lanes of its mask reach, is an error of the launch. Threads take turns in an order that
// emulation::order sets, so that a result that depends on it shows a race. Two accesses to a byte of shared memory, one
// of them a write, by two threads of a block with no barrier between them are an error of the launch, too (races.h).
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // one block at a time
#define __launch_bounds__(...)
#define UNWATCHED __attribute__((no_sanitize("thread")))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};

using cudaStream_t = void*;
enum cudaError_t : int {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorLaunchFailure = 719
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

namespace emulation {

enum State { kReady, kAtBarrier, kAtShuffle, kDone };
constexpr size_t kStack = 1 << 17;
constexpr unsigned kWarp = 32;

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    std::string place;  // of the barrier or shuffle
    unsigned mask;
    alignas(16) char lane[16];  // what it shows to the other lanes
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline const std::function<void()>* body;
inline unsigned current;
inline int order = 0;     // 0: threads in order, 1: in reverse, 2: the odd ones first
inline int planted = -1;  // index of the error that tests have switched on
inline int device = 0, devices = 2, launches = 0;
inline std::vector<int> launch_devices;
inline cudaError_t last_error = cudaSuccess;
inline std::string trouble;
inline std::vector<char> dynamic_shared;
inline const char* race = nullptr;
inline bool inside = false;  // a thread runs
inline unsigned epoch = 0;  // one more with each barrier and each block

inline void run_thread() {
    (*body)();
    threads[current].state = kDone;
    swapcontext(&threads[current].context, &scheduler);
}

inline void wait(State state, const std::string& place, unsigned mask = ~0u) {
    Thread& t = threads[current];
    t.state = state, t.place = place, t.mask = mask;
    swapcontext(&t.context, &scheduler);
}

}  // namespace emulation

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

// lets those go on that all wait in one place; false if there are none
inline bool release(unsigned count) {
    bool any = false;
    for (unsigned first = 0; first < count; first += kWarp) {  // shuffles
        const unsigned end = first + kWarp < count ? first + kWarp : count;
        for (unsigned i = first; i < end; ++i) {
            if (threads[i].state != kAtShuffle) continue;
            bool all = true;
            for (unsigned j = first; j < end; ++j)
                if (threads[i].mask >> (j - first) & 1)
                    all = all && threads[j].state == kAtShuffle && threads[j].place == threads[i].place;
            if (!all || !(threads[i].mask >> (i - first) & 1)) continue;
            const unsigned mask = threads[i].mask;
            for (unsigned j = first; j < end; ++j)
                if (mask >> (j - first) & 1) threads[j].state = kReady, any = true;
        }
    }
    bool all = true;
    for (unsigned i = 0; i < count; ++i)
        all = all && threads[i].state == kAtBarrier && threads[i].place == threads[0].place;
    for (unsigned i = 0; all && i < count; ++i) threads[i].state = kReady, any = true;
    epoch += all;
    return any;
}

UNWATCHED inline void turn(Thread& thread) {
    inside = true;
    swapcontext(&scheduler, &thread.context);
    inside = false;
}

inline void run_block(unsigned count) {
    ++epoch;
    if (threads.size() < count) threads.resize(count);
    for (unsigned i = 0; i < count; ++i) {
        Thread& t = threads[i];
        if (!t.stack) t.stack.reset(new char[kStack]);
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.get();
        t.context.uc_stack.ss_size = kStack;
        t.context.uc_link = nullptr;
        makecontext(&t.context, run_thread, 0);
        t.state = kReady;
    }
    for (;;) {
        unsigned done = 0;
        for (unsigned i = 0; i < count; ++i) {
            current = order == 0 ? i : order == 1 ? count - 1 - i : i < count / 2 ? 2 * i + 1 : 2 * (i - count / 2);
            threadIdx = dim3(current, 0, 0);
            if (threads[current].state == kReady) turn(threads[current]);
            done += threads[current].state == kDone;
        }
        if (done == count) return;
        if (!release(count)) {
            for (unsigned i = 0; i < count; ++i)
                if (threads[i].state != kDone)
                    trouble = "threads wait at " + threads[i].place + " for others that never come";
            last_error = cudaErrorLaunchFailure;
            return;
        }
    }
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& function) {
    const dim3 grid = config.gridDim, block = config.blockDim;
    ++launches, launch_devices.push_back(device);
    if (!grid.x || !block.x || grid.x > 0x7fffffffu || block.x > 1024 || block.y * block.z != 1 || grid.y * grid.z != 1)
        return last_error = cudaErrorInvalidConfiguration;
    dynamic_shared.assign(config.dynamicSmemBytes, char(255));
    gridDim = grid, blockDim = block, body = &function;
    for (unsigned i = 0; i < grid.x && last_error == cudaSuccess; ++i) {
        // blocks run in any order, too
        blockIdx = dim3(order == 1 ? grid.x - 1 - i : i, 0, 0);
        run_block(block.x);
    }
    return last_error;
}

template <typename T>
T shuffle(const char* place, unsigned mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 16);
    const unsigned self = current, first = self / kWarp * kWarp;
    std::memcpy(threads[self].lane, &value, sizeof(T));
    wait(kAtShuffle, place, mask);
    if (from < kWarp && first + from < blockDim.x) std::memcpy(&value, threads[first + from].lane, sizeof(T));
    wait(kAtShuffle, std::string(place) + " (read)", mask);  // nobody shows the next value before all have this one
    return value;
}

}  // namespace emulation

#define EMULATION_TEXT2(x) #x
#define EMULATION_TEXT(x) EMULATION_TEXT2(x)
#define EMULATION_PLACE __FILE__ ":" EMULATION_TEXT(__LINE__)
#define __syncthreads() emulation::wait(emulation::kAtBarrier, EMULATION_PLACE)
#define __shfl_sync(mask, value, lane) emulation::shuffle(EMULATION_PLACE, mask, value, lane)
#define __shfl_xor_sync(mask, value, bits) emulation::shuffle(EMULATION_PLACE, mask, value, threadIdx.x % 32 ^ (bits))
#define __shfl_down_sync(mask, value, by) emulation::shuffle(EMULATION_PLACE, mask, value, threadIdx.x % 32 + (by))

inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline void __stwb(uint4* p, uint4 bits) {
    if (reinterpret_cast<uintptr_t>(p) % 16) std::abort();  // as a GPU would: misaligned address
    *p = bits;
}
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
using std::exp;
using std::sqrt;

inline cudaError_t cudaGetDevice(int* device) {
    *device = emulation::device;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= emulation::devices) return emulation::last_error = cudaErrorInvalidDevice;
    emulation::device = device;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
    const cudaError_t error = emulation::last_error;
    emulation::last_error = cudaSuccess;
    return error;
}
inline const char* cudaGetErrorString(cudaError_t error) {
    if (error != cudaErrorLaunchFailure) return "emulated error";
    return emulation::trouble.empty() ? emulation::race : emulation::trouble.c_str();
}

template <typename... Args, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args...), const Given&... given) {
    return emulation::launch(*config, [&] { kernel(given...); });
}
