// The text of a CUDA error, for the exception that reports it.
#include <cuda_runtime.h>

namespace edm {

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace edm
