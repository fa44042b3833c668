// What the tests call: the launchers of csrc/cuda with plain arguments, and kernels that try the emulation itself.
// One translation unit, so that all of it shares one emulated device.
#include "../../csrc/cuda/errors.cu"
#include "../../csrc/cuda/group_norm_silu.cu"
#include "../../csrc/cuda/solver_update.cu"
#include "../../csrc/cuda/upfirdn.cu"

namespace edm {
namespace {

// sums[0]: of the block by shuffles and shared memory; `fault` 1: half of the threads skip a barrier, 2: no barrier
// where there must be one, 3: a lane skips a shuffle, 4: a thread leaves before the barrier
__global__ void _block_sum(float* sums, const float* x, int fault) {
    __shared__ float partial[32];
    float sum = x[threadIdx.x];
    if (fault == 4 && threadIdx.x == 5) return;
    if (!(fault == 3 && threadIdx.x == 7))
        for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(0xffffffff, sum, bits);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    if (fault == 1 ? threadIdx.x % 64 < 32 : fault != 2) __syncthreads();
    float total = 0;
    for (int i = 0; i < int(blockDim.x) / 32; ++i) total += partial[i];
    sums[threadIdx.x] = total;
    __syncthreads();
    partial[threadIdx.x / 32] = -1;
}

}  // namespace
}  // namespace edm

using namespace edm;

extern "C" {

void emulate(int order, int devices) {
    emulation::order = order, emulation::devices = devices, emulation::device = 0, emulation::launches = 0;
    emulation::launch_devices.clear(), emulation::last_error = cudaSuccess;
}
int current_device() { return emulation::device; }
int launches() { return emulation::launches; }
int launch_device(int i) { return emulation::launch_devices[i]; }
const char* error_text(int status) { return cuda_error_text(status - kCudaError); }

int block_sum(float* sums, const float* x, int threads, int fault, int device) {
    DeviceGuard guard(device);
    if (guard.ok()) launch(_block_sum, 2, threads, nullptr, sums, x, fault);
    return guard.status();
}

int upfirdn_fwd(int dtype, void* y, void* x, void* f, const int64_t* k, double gain, int up, int last, int device) {
    return upfirdn_fwd_cuda(
        {dtype, y, x, f, k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], gain, bool(up), bool(last), k[9]},
        device, 0);
}

int solver_update_fwd(int dtype, void* const* p, void* const* terms, const double* weights, int num_terms,
                      const double* k, int64_t size, int device) {
    SolverUpdate s{dtype, p[0], p[1], p[2], p[3], p[4], p[5], {}, {}, num_terms,
                   k[0], k[1], k[2], k[3], k[4], k[5], k[6], size};
    for (int i = 0; i < num_terms && i < kMaxTerms; ++i) s.terms_ptr[i] = terms[i], s.weights[i] = weights[i];
    return solver_update_fwd_cuda(s, device, nullptr);
}

// p: y, stats, x, weight, bias, scale, shift, workspace; with device < 0 the bytes of the workspace, and no run
int64_t group_norm_silu_fwd(int dtype, void* const* p, const int64_t* k, double eps, int silu, int last, int device) {
    const GroupNormSilu s{dtype, p[0], p[1], p[2], p[3], p[4], p[5], p[6], nullptr, nullptr, nullptr, k[0], k[1], k[2],
                          k[3], k[4], k[5], eps, bool(silu), bool(last), k[6], p[7]};
    return device < 0 ? group_norm_silu_fwd_workspace_cuda(s) : group_norm_silu_fwd_cuda(s, device, nullptr);
}
}
