// SPDX-License-Identifier: MIT

// Dense causal attention over OpenBLAS's sgemm, where the build found one.

#include "baselines/blocked_attention.hpp"

#if BUTTERFLY_BENCH_OPENBLAS
#include <cblas.h>
#endif

namespace bench {

#if BUTTERFLY_BENCH_OPENBLAS

namespace {

struct openblas_products {
    using in = matrix_ref<float const>;

    static void times_transposed(in const& a, in const& b, matrix_ref<float> const& out) {
        gemm(a, b, CblasTrans, 0.0F, out);
    }
    static void add_times(in const& a, in const& b, matrix_ref<float> const& out) {
        gemm(a, b, CblasNoTrans, 1.0F, out);
    }

private:
    /// out = a b + of_old * out.
    static void gemm(in const& a, in const& b, CBLAS_TRANSPOSE order_of_b, float of_old, matrix_ref<float> const& out) {
        auto const size = [](index_t n) { return static_cast<blasint>(n); };
        cblas_sgemm(CblasRowMajor, CblasNoTrans, order_of_b, size(out.rows), size(out.cols), size(a.cols), 1.0F, a.data,
                    size(a.cols), b.data, size(b.cols), of_old, out.data, size(out.cols));
    }
};

} // namespace

bool has_openblas() noexcept {
    return true;
}

char const* openblas_kernels() noexcept {
    return openblas_get_corename();
}

void openblas_attention(dense_inputs const& p, std::span<float> scores, bf::executor const& threads) {
    openblas_set_num_threads(1);
    blocked_attention(p, openblas_products{}, scores, threads);
}

#else

bool has_openblas() noexcept {
    return false;
}

char const* openblas_kernels() noexcept {
    return "";
}

void openblas_attention(dense_inputs const&, std::span<float>, bf::executor const&) {}

#endif

} // namespace bench
