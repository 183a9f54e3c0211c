// SPDX-License-Identifier: MIT

// Dense causal attention over Eigen's products.

#include "baselines/blocked_attention.hpp"

namespace bench {

namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<row_major const> map(matrix_ref<float const> const& m) {
    return {m.data, m.rows, m.cols};
}
Eigen::Map<row_major> map(matrix_ref<float> const& m) {
    return {m.data, m.rows, m.cols};
}

struct eigen_products {
    using in = matrix_ref<float const>;
    static void times_transposed(in const& a, in const& b, matrix_ref<float> const& out) {
        map(out).noalias() = map(a) * map(b).transpose();
    }
    static void add_times(in const& a, in const& b, matrix_ref<float> const& out) {
        map(out).noalias() += map(a) * map(b);
    }
};

} // namespace

void eigen_attention(dense_inputs const& p, std::span<float> scores, bf::executor const& threads) {
    Eigen::setNbThreads(1);
    blocked_attention(p, eigen_products{}, scores, threads);
}

} // namespace bench
