// Memory of the matrix kernels that each thread keeps.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace edm {

// A block of memory that each thread keeps: allocating megabytes at each call would cost page faults
inline float* scratch_of(int64_t floats) {
    struct Free {
        void operator()(float* p) const { std::free(p); }
    };
    static thread_local std::unique_ptr<float, Free> kept;
    static thread_local int64_t size = 0;
    if (size < floats) {
        kept.reset(), size = 0;
        const size_t bytes = (size_t(floats) * sizeof(float) + 4095) / 4096 * 4096;
        kept.reset(static_cast<float*>(std::aligned_alloc(4096, bytes)));
        if (!kept) throw std::bad_alloc();
        size = floats;
    }
    return kept.get();
}

// what is read where an image has no pixels
inline const float* zeros_of(int64_t floats) {
    static thread_local std::vector<float> kept;
    if (int64_t(kept.size()) < floats) kept.assign(size_t(floats), 0.0f);
    return kept.data();
}

}  // namespace edm
