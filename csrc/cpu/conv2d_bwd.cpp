// Three stages, a chunk of tiles at a time: transforms of x and dy, 36 products that sum over the tiles, and at the end
// the transform back. The order of the sums depends on sizes alone.
#include <algorithm>

#include "_conv2d_bwd.h"
#include "_kernels.h"
#include "simd/isas.h"

namespace edm {
namespace {

Conv2d image_of(const Conv2dBwd& s) {
    Conv2d image = {};
    image.x_ptr = s.x_ptr;
    image.n = s.n, image.h = s.h, image.w = s.w, image.in = s.in, image.out = s.out;
    image.kernel = 3, image.padding = s.padding, image.x_pitch = s.in;
    return image;
}

}  // namespace

int64_t conv2d_bwd_workspace(const Conv2dBwd& s) {
    return GradientWorkspace(Cut(image_of(s), k4x4).total, s.in, s.out, nullptr).floats;
}

int conv2d_bwd_cpu(const Conv2dBwd& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (s.n < 1 || s.in < 1 || s.out < 1 || s.padding < 0 || s.h + 2 * s.padding < 3 || s.w + 2 * s.padding < 3 ||
        !available(isa))
        return kBadArgument;
    const Conv2dBwdKernels& kernels = kernels_of(isa).conv2d_bwd;
    const Conv2d image = image_of(s);
    const Cut cut(image, k4x4);
    const GradientWorkspace w(cut.total, s.in, s.out, static_cast<float*>(s.workspace_ptr));
    for (int64_t base = 0; base < cut.total; base += w.tiles) {
        const int64_t count = std::min(w.tiles, cut.total - base);
        parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
            kernels.transform_chunk(s, image, cut, base, begin, end, w);
        });
        parallel_for(36 * w.panels, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t k = begin; k < end; ++k)
                kernels.multiply_columns(w, s.in, k / w.panels, k % w.panels, count, base > 0);
        });
    }
    parallel_for(w.panels * s.in, 16, threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) kernels.write_weights(s, w, k / s.in, k % s.in);
    });
    return kOk;
}

}  // namespace edm
