// The door: addresses come in as integers, a status goes out as an exception, the GIL is released around the work.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "attention.h"
#include "common.h"
#include "conv2d.h"
#include "cpu/algorithms.h"
#include "cpu/simd/isas.h"
#include "group_norm_silu.h"
#include "solver_update.h"
#include "upfirdn.h"

#ifndef EDM_SOURCES
#define EDM_SOURCES ""
#endif
#ifndef EDM_CUDA_STATUS
#define EDM_CUDA_STATUS ""
#endif

namespace py = pybind11;
using Address = uintptr_t;

namespace edm {
#ifdef EDM_WITH_CUDA
const char* cuda_error_text(int error);
#endif

static void check(const char* name, int status) {
    if (status == kOk) return;
    std::string why = status == kBadArgument ? "bad argument" : status == kBadType ? "element type not supported" : "";
#ifdef EDM_WITH_CUDA
    if (status >= kCudaError) why = cuda_error_text(status - kCudaError);
#endif
    throw std::runtime_error(std::string(name) + ": " + why);
}

static SolverUpdate solver_update(int dtype, Address y, Address d, Address base, Address x, Address D, Address noise,
                                  const std::vector<Address>& terms, const std::vector<double>& weights,
                                  const std::vector<double>& pqtahwc, int64_t size) {
    if (terms.size() != weights.size() || terms.size() > kMaxTerms || pqtahwc.size() != 7 || (x == 0) != (D == 0) ||
        (D && !d && size))
        check("solver_update", kBadArgument);
    const auto& k = pqtahwc;
    SolverUpdate s{dtype, (void*)y, (void*)d, (void*)base, (void*)x, (void*)D, (void*)noise, {}, {},
                   (int)terms.size(), k[0], k[1], k[2], k[3], k[4], k[5], k[6], size};
    for (size_t i = 0; i < terms.size(); ++i) s.terms_ptr[i] = (void*)terms[i], s.weights[i] = weights[i];
    return s;
}

static Upfirdn upfirdn(int dtype, Address y, Address x, Address f, const std::vector<int64_t>& nchw, int64_t out_h,
                       int64_t out_w, int64_t taps, int64_t factor, int64_t padding, double gain, bool up,
                       bool channels_last, int64_t x_pitch) {
    if (nchw.size() != 4) check("upfirdn", kBadArgument);
    return {dtype, (void*)y, (void*)x, (void*)f, nchw[0], nchw[1], nchw[2], nchw[3],
            out_h, out_w, taps, factor, padding, gain, up, channels_last, x_pitch};
}

static GroupNormSilu norm(int dtype, Address x, Address y, Address stats, Address weight, Address bias, Address scale,
                          Address shift, const std::vector<int64_t>& sizes, double eps, bool silu, bool channels_last) {
    if (sizes.size() != 7) check("group_norm_silu", kBadArgument);
    return {dtype, (void*)y, (void*)stats, (void*)x, (void*)weight, (void*)bias, (void*)scale, (void*)shift,
            nullptr, nullptr, nullptr, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
            eps, silu, channels_last, sizes[6], nullptr, nullptr};
}

static GroupNormSilu norm_fwd(int dtype, Address x, Address y, Address stats, Address weight, Address bias,
                              Address scale, Address shift, Address affine, const std::vector<int64_t>& sizes,
                              double eps, bool silu, bool channels_last) {
    auto s = norm(dtype, x, y, stats, weight, bias, scale, shift, sizes, eps, silu, channels_last);
    s.affine_ptr = (void*)affine;
    return s;
}

static GroupNormSilu norm_bwd(int dtype, Address x, Address stats, Address weight, Address bias, Address scale,
                              Address shift, Address dy, Address dx, Address dparams,
                              const std::vector<int64_t>& sizes, double eps, bool silu, bool channels_last) {
    auto s = norm(dtype, x, 0, stats, weight, bias, scale, shift, sizes, eps, silu, channels_last);
    s.dy_ptr = (void*)dy, s.dx_ptr = (void*)dx, s.dparams_ptr = (void*)dparams;
    return s;
}

#ifdef EDM_WITH_CUDA
static GroupNormSilu norm_cuda(int dtype, Address x, Address y, Address stats, Address weight, Address bias,
                               Address scale, Address shift, Address workspace, const std::vector<int64_t>& sizes,
                               double eps, bool silu, bool channels_last) {
    auto s = norm(dtype, x, y, stats, weight, bias, scale, shift, sizes, eps, silu, channels_last);
    s.workspace_ptr = (void*)workspace;
    return s;
}
#endif

static Conv2d conv2d(int dtype, Address y, Address x, Address weight, Address bias, Address residual, Address workspace,
                     Address affine, Address balance, const std::vector<int64_t>& k, double scale, bool silu,
                     bool transposed, int algorithm) {
    if (k.size() != 11) check("conv2d", kBadArgument);
    return {dtype, algorithm, (void*)y, (void*)x, (void*)weight, (void*)bias, (void*)residual,
            k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9], k[10], scale,
            (void*)workspace, transposed, (void*)affine, silu, (void*)balance};
}

static Conv2dPack conv2d_pack(int dtype, Address packed, Address weight, int64_t out, int64_t in, int64_t kernel,
                              bool transposed, int algorithm) {
    return {dtype, algorithm, (void*)packed, (void*)weight, out, in, kernel, transposed};
}

static Attention attention(int dtype, Address qkv, Address a, Address stats, Address da, Address dqkv,
                           const std::vector<int64_t>& sizes, const std::vector<int64_t>& qkv_strides,
                           const std::vector<int64_t>& a_strides) {
    if (sizes.size() != 4 || qkv_strides.size() != 5 || a_strides.size() != 4) check("attention", kBadArgument);
    const auto &i = qkv_strides, &o = a_strides;
    return {dtype, (void*)qkv, (void*)a, (void*)stats, (void*)da, (void*)dqkv, sizes[0], sizes[1], sizes[2], sizes[3],
            {i[0], i[1], i[2], i[3], i[4]}, {o[0], o[1], o[2], o[3]}};
}

static Conv2dBwd conv2d_bwd(int dtype, Address dweight, Address x, Address dy, Address workspace,
                            const std::vector<int64_t>& k) {
    if (k.size() != 6) check("conv2d_bwd", kBadArgument);
    return {dtype, (void*)dweight, (void*)x, (void*)dy, (void*)workspace, k[0], k[1], k[2], k[3], k[4], k[5]};
}

static py::list algorithms() {
    py::list rows;
    for (const Algorithm& a : kAlgorithms)
        rows.append(py::dict(py::arg("name") = a.name, py::arg("rows") = a.tile.rows,
                             py::arg("columns") = a.tile.columns, py::arg("paired") = a.paired(),
                             py::arg("int16") = a.int16(), py::arg("packed") = a.packed,
                             py::arg("doubled") = a.doubled, py::arg("error") = a.error));
    return rows;
}

static py::list isas() {
    py::list rows;
    for (int i = 0; i < isa_count(); ++i) {
        const Isa& isa = isa_at(i);
        rows.append(py::dict(py::arg("name") = isa.name, py::arg("available") = isa.available,
                             py::arg("registers") = isa.registers, py::arg("fma") = isa.fma,
                             py::arg("int16_dot") = isa.int16_dot, py::arg("pairs") = isa.pairs));
    }
    return rows;
}

// m.def of one native function: its maker's arguments, then (isa, threads) on the CPU or (device, stream) on a GPU
template <typename S, typename... Args, typename P, typename Q>
static void define(py::module_& m, const std::string& name, S (*make)(Args...), int (*run)(const S&, P, Q)) {
    using Last = std::conditional_t<std::is_pointer_v<Q>, Address, Q>;
    m.def(name.c_str(), [=](Args... args, P p, Last q) { check(name.c_str(), run(make(args...), p, (Q)q)); },
          py::call_guard<py::gil_scoped_release>());
}

}  // namespace edm

PYBIND11_MODULE(_C, m) {
    using namespace edm;
    m.attr("MAX_TERMS") = int(kMaxTerms);
    m.attr("ISAS") = isas();
    m.attr("ALGORITHMS") = algorithms();
    m.attr("BEST_ISA") = best_isa();
    m.attr("SOURCES") = EDM_SOURCES;
    m.attr("CUDA_STATUS") = EDM_CUDA_STATUS;
    m.def("thread_pool", [] { return std::string(thread_pool()); });
    m.def("conv2d_supports", [](int algorithm, int64_t in, int64_t kernel, int64_t padding) {
        return kAlgorithms[algorithm].supports(in, kernel, padding);
    });
    m.def("conv2d_packed_size", conv2d_packed_size);
    m.def("conv2d_fwd_workspace", conv2d_fwd_workspace);
    define(m, "attention_fwd_cpu", attention, attention_fwd_cpu);
    define(m, "attention_bwd_cpu", attention, attention_bwd_cpu);
    define(m, "conv2d_pack_cpu", conv2d_pack, conv2d_pack_cpu);
    define(m, "conv2d_fwd_cpu", conv2d, conv2d_fwd_cpu);
    m.def("conv2d_bwd_workspace", conv2d_bwd_workspace);
    define(m, "conv2d_bwd_cpu", conv2d_bwd, conv2d_bwd_cpu);
    define(m, "group_norm_silu_fwd_cpu", norm_fwd, group_norm_silu_fwd_cpu);
    define(m, "group_norm_silu_bwd_cpu", norm_bwd, group_norm_silu_bwd_cpu);
    define(m, "solver_update_fwd_cpu", solver_update, solver_update_fwd_cpu);
    define(m, "upfirdn_fwd_cpu", upfirdn, upfirdn_fwd_cpu);
#ifdef EDM_WITH_CUDA
    m.def("group_norm_silu_fwd_workspace_cuda", [](int dtype, Address x, Address y, const std::vector<int64_t>& sizes,
                                                   bool channels_last) {
        return group_norm_silu_fwd_workspace_cuda(
            norm_cuda(dtype, x, y, 0, 0, 0, 0, 0, 0, sizes, 0, false, channels_last));
    });
    define(m, "group_norm_silu_fwd_cuda", norm_cuda, group_norm_silu_fwd_cuda);
    define(m, "solver_update_fwd_cuda", solver_update, solver_update_fwd_cuda);
    define(m, "upfirdn_fwd_cuda", upfirdn, upfirdn_fwd_cuda);
#endif
}
