// Three stages: transforms of x and dy, 36 products that sum over the tiles, and the transform back; a chunk of tiles
// at a time, or a panel of output channels if all tiles are one chunk. The order of the sums depends on sizes alone.
#include <algorithm>

#include "_conv2d_bwd.h"
#include "_kernels.h"
#include "_scratch.h"
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

// each thread takes some panels, or more threads than panels the input channels of one, and transforms dy for itself:
// threads beyond panels times in / 64 have nothing to do
void panels_alone(const Conv2dBwd& s, const Cut& cut, const GradientSizes& sizes, const Conv2dBwdKernels& kernels,
                  const float* v, int threads) {
    const int64_t parts = std::max<int64_t>(1, std::min(threads / panels(s.out), s.in / (2 * kPanel)));
    parallel_for(panels(s.out) * parts, 1, threads, [&](int64_t begin, int64_t end) {
        float *m = scratch_of(sizes.panel_floats(s.in)), *u = m + 36 * sizes.m_step();
        for (int64_t item = begin; item < end; ++item) {
            const int64_t panel = item / parts, part = item % parts, groups = (s.in + kWritten - 1) / kWritten;
            const int64_t first = groups * part / parts * kWritten;
            const int64_t last = std::min(s.in, groups * (part + 1) / parts * kWritten);
            for (int64_t tile = 0; tile < sizes.tiles; tile += sizes.slice) {
                const int64_t count = std::min(sizes.slice, sizes.tiles - tile);
                kernels.transform_gradient(s, cut, tile, 0, count, panel, m, sizes.m_step());
                for (int64_t plane = 0; plane < 36; ++plane)
                    kernels.multiply_columns(v + (plane * sizes.tiles + tile) * sizes.pitch + first, sizes.pitch,
                                             m + plane * sizes.m_step(), count,
                                             u + plane * sizes.u_step(s.in) + first * kPanel, last - first, tile > 0);
            }
            kernels.write_weights(s, u, sizes.u_step(s.in), panel, first, last);
        }
    });
}

void chunk_by_chunk(const Conv2dBwd& s, const Conv2d& image, const Cut& cut, const GradientSizes& sizes,
                    const Conv2dBwdKernels& kernels, float* v, int threads) {
    float *m = v + sizes.v_floats(), *u = m + 36 * sizes.m_step();
    const int64_t in_panel = s.in * kPanel, m_panel = sizes.tiles * kPanel;
    for (int64_t base = 0; base < cut.total; base += sizes.tiles) {
        const int64_t count = std::min(sizes.tiles, cut.total - base);
        parallel_for(count, 1, threads, [&](int64_t begin, int64_t end) {
            kernels.transform_images(image, cut, base, begin, end, v, sizes);
            for (int64_t panel = 0; panel < sizes.panels; ++panel)
                kernels.transform_gradient(s, cut, base, begin, end, panel, m + panel * m_panel, sizes.m_step());
        });
        parallel_for(36 * sizes.panels, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t k = begin; k < end; ++k)
                kernels.multiply_columns(v + k / sizes.panels * sizes.tiles * sizes.pitch, sizes.pitch,
                                         m + k * m_panel, count, u + k * in_panel, s.in, base > 0);
        });
    }
    const int64_t groups = (s.in + kWritten - 1) / kWritten;
    parallel_for(sizes.panels * groups, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
            const int64_t panel = k / groups, first = k % groups * kWritten;
            kernels.write_weights(s, u + panel * in_panel, sizes.u_step(s.in), panel, first,
                                  std::min(s.in, first + kWritten));
        }
    });
}

}  // namespace

int64_t conv2d_bwd_workspace(const Conv2dBwd& s) {
    const GradientSizes sizes(Cut(image_of(s), k4x4).total, s.in, s.out);
    return sizes.v_floats() + (sizes.alone ? 0 : sizes.panel_floats(s.in));
}

int conv2d_bwd_cpu(const Conv2dBwd& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (s.n < 1 || s.in < 1 || s.out < 1 || s.padding < 0 || s.h + 2 * s.padding < 3 || s.w + 2 * s.padding < 3 ||
        !available(isa))
        return kBadArgument;
    const Conv2dBwdKernels& kernels = kernels_of(isa).conv2d_bwd;
    const Conv2d image = image_of(s);
    const Cut cut(image, k4x4);
    const GradientSizes sizes(cut.total, s.in, s.out);
    float* v = static_cast<float*>(s.workspace_ptr);
    if (!sizes.alone) {
        chunk_by_chunk(s, image, cut, sizes, kernels, v, threads);
        return kOk;
    }
    parallel_for(cut.total, 1, threads, [&](int64_t begin, int64_t end) {
        kernels.transform_images(image, cut, 0, begin, end, v, sizes);
    });
    panels_alone(s, cut, sizes, kernels, v, threads);
    return kOk;
}

}  // namespace edm
