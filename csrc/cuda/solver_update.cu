// A 16-byte vector per thread and step, every operation rounded on its own: the compiler may not contract the _rn
// intrinsics. Arrays that do not start at a multiple of 16 bytes, and the elements after the last vector, go one by
// one.
#include "../solver_update.h"
#include "launch.h"

namespace edm {
namespace {

__device__ __forceinline__ double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ double add(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double quotient(double a, double b) { return __ddiv_rn(a, b); }
__device__ __forceinline__ float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float sub(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float quotient(float a, float b) { return __fdiv_rn(a, b); }

template <int V, typename T>
__device__ __forceinline__ Vec<T, V> at(const void* p, int64_t i) {
    return load<T, V>(static_cast<const T*>(p) + i);
}

// elements i to i + V
template <int V, typename T>
__device__ __forceinline__ void update(const SolverUpdate& s, int64_t i) {
    Vec<T, V> total, y = at<V, T>(s.base_ptr, i);
    bool started = false;  // the first term starts the sum: 0 + x would lose the sign of a zero
    for (int k = 0; k < s.num_terms; ++k) {
        const Vec<T, V> term = at<V, T>(s.terms_ptr[k], i);
        for (int v = 0; v < V; ++v) {
            const T part = mul(T(s.weights[k]), term.v[v]);
            total.v[v] = started ? add(total.v[v], part) : part;
        }
        started = true;
    }
    if (s.D_ptr) {
        const Vec<T, V> x = at<V, T>(s.x_ptr, i), D = at<V, T>(s.D_ptr, i);
        Vec<T, V> d;
        for (int v = 0; v < V; ++v) {
            d.v[v] = sub(mul(T(s.p), x.v[v]), mul(T(s.q), D.v[v]));
            if (s.t != 1) d.v[v] = quotient(d.v[v], T(s.t));
            const T part = mul(T(s.w), d.v[v]);
            total.v[v] = started ? add(total.v[v], part) : part;
        }
        store(static_cast<T*>(s.d_ptr) + i, d);
        started = true;
    }
    for (int v = 0; v < V; ++v) {
        y.v[v] = mul(T(s.a), y.v[v]);
        if (started) y.v[v] = add(y.v[v], mul(T(s.h), total.v[v]));
    }
    if (s.noise_ptr) {
        const Vec<T, V> noise = at<V, T>(s.noise_ptr, i);
        for (int v = 0; v < V; ++v) y.v[v] = add(y.v[v], mul(T(s.c), noise.v[v]));
    }
    store(static_cast<T*>(s.y_ptr) + i, y);
}

template <typename T, int V>
__global__ void __launch_bounds__(kThreads) _solver_update_fwd(const SolverUpdate s) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads, vectors = s.size / V;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    for (int64_t i = first; i < vectors; i += stride) update<V, T>(s, i * V);
    if (V > 1 && first < s.size - vectors * V) update<1, T>(s, vectors * V + first);
}

template <typename T>
void run(const SolverUpdate& s, void* stream) {
    bool wide = true;
    for (const void* p : {(const void*)s.y_ptr, (const void*)s.d_ptr, s.base_ptr, s.x_ptr, s.D_ptr, s.noise_ptr})
        wide = wide && aligned(p);
    for (int k = 0; k < s.num_terms; ++k) wide = wide && aligned(s.terms_ptr[k]);
    constexpr int V = kWidth<T>;
    const int64_t blocks = blocks_for(wide ? (s.size + V - 1) / V : s.size);
    launch(wide ? _solver_update_fwd<T, V> : _solver_update_fwd<T, 1>, blocks, kThreads, stream, s);
}

}  // namespace

int solver_update_fwd_cuda(const SolverUpdate& s, int device, void* stream) {
    if (!fits(s)) return kBadArgument;
    if (s.dtype != kFloat64 && s.dtype != kFloat32) return kBadType;
    if (s.size == 0) return kOk;
    DeviceGuard guard(device);
    if (!guard.ok()) return guard.status();
    if (s.dtype == kFloat64)
        run<double>(s, stream);
    else
        run<float>(s, stream);
    return guard.status();
}

}  // namespace edm
