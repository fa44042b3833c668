// What the tests call: the launchers of csrc/cuda with plain arguments, and kernels that try the emulation itself.
// One translation unit, so that all of it shares one emulated device.
#include "../../csrc/cuda/errors.cu"
#include "../../csrc/cuda/functions.h"
#include "../../csrc/cuda/group_norm_silu.cu"
#include "../../csrc/cuda/solver_update.cu"
#include "../../csrc/cuda/upfirdn.cu"
#include "cuda_emulation/races.h"
#include "helpers/filled.h"

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
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = -1;
}

}  // namespace
}  // namespace edm

using namespace edm;

extern "C" {

void emulate(int order, int devices) {
    emulation::order = order, emulation::devices = devices, emulation::device = 0, emulation::launches = 0;
    emulation::launch_devices.clear(), emulation::last_error = cudaSuccess;
    emulation::race = nullptr, emulation::trouble.clear();
}
void plant(int index) { emulation::planted = index; }
int current_device() { return emulation::device; }
int launches() { return emulation::launches; }
int launch_device(int i) { return emulation::launch_devices[i]; }
const char* error_text(int status) { return cuda_error_text(status - kCudaError); }

int block_sum(float* sums, const float* x, int threads, int fault, int device) {
    DeviceGuard guard(device);
    if (guard.ok()) launch(_block_sum, 2, threads, nullptr, sums, x, fault);
    return guard.status();
}

// The status of a function of csrc/cuda/functions.h, or the size that it tells. Each of its `count` arguments has a
// name and a number or an address.
int64_t call(const char* function, int count, const char* const* names, const double* numbers, void* const* addresses,
             int device) {
    NamedValues values;
    for (int i = 0; i < count; ++i) values.emplace_back(names[i], value_of(numbers[i], addresses[i]));
    int64_t result = -1;
    try {
        for (const Function& f : kCudaFunctions) {
            if (f.name != std::string(function)) continue;
            const auto s = filled(f, values);
            result = f.launch ? f.launch(s.data(), device, nullptr) : f.size(s.data());
        }
    } catch (const std::invalid_argument& error) {
        std::fprintf(stderr, "%s: %s\n", function, error.what());
    }
    return result;
}
}
