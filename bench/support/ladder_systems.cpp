// SPDX-License-Identifier: MIT
#include "ladder_systems.hpp"

#include <butterfly/cache/attend.hpp>

#include "ladder_inputs.hpp"
#include "ladder_routing.hpp"
#include "summary_mixes.hpp"

#include <cstring>
#include <map>

namespace bench {
namespace {

template <class T>
using view = bf::heads_view<T>;

/// Memory that is not touched before it is written.
template <bf::element E>
class slab {
public:
    slab() = default;
    explicit slab(bf::heads_shape shape)
        : shape_(shape), data_(std::make_unique_for_overwrite<std::uint16_t[]>(
                             static_cast<std::size_t>(bf::detail::checked_size(shape)) * sizeof(E) / 2)) {}

    [[nodiscard]] view<E> all() const { return {reinterpret_cast<E*>(data_.get()), shape_}; }
    [[nodiscard]] index_t bytes() const {
        return shape_.heads * shape_.tokens * shape_.head_dim * static_cast<index_t>(sizeof(E));
    }

private:
    bf::heads_shape shape_{};
    std::unique_ptr<std::uint16_t[]> data_;
};

/// Copies rows, one run per head.
template <bf::element E>
void copy_rows(view<E const> from, view<E> to, index_t first, index_t tokens) {
    auto const bytes = static_cast<std::size_t>(tokens * from.head_dim()) * sizeof(E);
    for (index_t h = 0; h < from.heads(); ++h)
        std::memcpy(static_cast<void*>(to.row(h, first).data()), from.row(h, 0).data(), bytes);
}

/// Keys and values of all layers.
template <bf::element E>
struct raw_tokens {
    std::vector<slab<E>> k, v;

    raw_tokens(ladder_settings const& s, index_t capacity) {
        bf::heads_shape const shape{s.model.kv_heads, capacity, s.model.head_dim};
        for (index_t l = 0; l < s.model.layers; ++l) {
            k.emplace_back(shape);
            v.emplace_back(shape);
        }
    }

    [[nodiscard]] index_t bytes() const { return 2 * static_cast<index_t>(k.size()) * k.front().bytes(); }
};

/// A ring as a storage whose slots are absolute positions.
template <bf::element E>
struct ring_view {
    view<E const> rows; // [kv_heads, ring, head_dim]
    index_t tokens = 0; // slots
};

template <bf::element E>
bf::storage_ref describe_storage(ring_view<E> const& r) noexcept {
    bf::storage_ref s = bf::describe_storage(r.rows);
    s.ring            = r.rows.tokens();
    s.shape.tokens    = r.tokens;
    return s;
}
template <bf::element E>
auto const& codec_of(ring_view<E> const& r) noexcept {
    return bf::codec_of(r.rows);
}

/// What every system needs: inputs, an output buffer of one chunk, and scratch that is kept between calls.
template <bf::element E>
struct shared_state {
    ladder_settings settings;
    ladder_inputs<E> inputs;
    ladder_routing routing;
    bf::heads_buffer<float> out;
    std::vector<std::byte> scratch;
    std::shared_ptr<raw_tokens<E>> tokens; // of dense and block_sparse

    shared_state(ladder_settings const& s, index_t context)
        : settings(s), inputs(s), routing(s, context), out({s.model.heads, s.step, s.model.head_dim}) {}

    [[nodiscard]] view<float> output(index_t n) { return out.view().slice(0, n); }

    /// Attends a bound problem in the kept scratch memory.
    template <class Bound>
    void run(machine const& m, Bound const& bound) {
        bf::problem p    = bound.problem();
        auto const bytes = static_cast<std::size_t>(workspace_bytes(m, std::span<bf::problem const>(&p, 1)));
        if (scratch.size() < bytes) scratch = std::vector<std::byte>(bytes);
        p.options.workspace = scratch;
        bf::attend(m, std::span<bf::problem const>(&p, 1));
    }
};

/// The part that systems with different problems share: `Derived::bound(machine, layer, position, tokens)`.
template <bf::element E, class Derived>
class system_of : public ladder_system {
public:
    explicit system_of(std::shared_ptr<shared_state<E>> shared) : shared_(std::move(shared)) {}

    void attend(machine const& m, index_t layer, index_t position, index_t tokens) final {
        self().with_bound(m, layer, position, tokens, [&](auto const& bound) { shared_->run(m, bound); });
    }
    std::string explain(machine const& m, index_t position, index_t tokens) final {
        std::string text;
        self().with_bound(m, 0, position, tokens, [&](auto const& bound) {
            auto const p = bound.problem();
            text         = bench::explain(m, p);
        });
        return text;
    }
    float output() const final { return shared_->out.values()[0]; }

protected:
    ladder_settings const& settings() const { return shared_->settings; }
    view<float const> q(index_t layer, index_t position, index_t tokens) const {
        return shared_->inputs.q(layer, position, tokens);
    }
    view<float> out(index_t tokens) const { return shared_->output(tokens); }
    shared_state<E>& shared() const { return *shared_; }

private:
    Derived& self() { return static_cast<Derived&>(*this); }
    std::shared_ptr<shared_state<E>> shared_;
};

/// dense and block_sparse: all tokens raw; they differ in which ones a query sees.
template <bf::element E, class Derived>
class raw_system : public system_of<E, Derived> {
public:
    raw_system(std::shared_ptr<shared_state<E>> shared, index_t capacity) : system_of<E, Derived>(shared) {
        if (!shared->tokens) shared->tokens = std::make_shared<raw_tokens<E>>(shared->settings, capacity);
        tokens_ = shared->tokens;
    }

    void append(machine const&, index_t layer, index_t position, index_t tokens) final {
        auto const l = static_cast<std::size_t>(layer);
        copy_rows<E>(this->shared().inputs.k(layer, position, tokens), tokens_->k[l].all(), position, tokens);
        copy_rows<E>(this->shared().inputs.v(layer, position, tokens), tokens_->v[l].all(), position, tokens);
    }
    index_t retained_bytes(index_t tokens) const final { return tokens * this->settings().token_bytes(); }
    index_t allocated_bytes() const final { return tokens_->bytes(); }

protected:
    index_t capacity() const { return tokens_->k.front().all().tokens(); }
    view<E const> k(index_t layer, index_t end) const {
        return view<E const>(tokens_->k[static_cast<std::size_t>(layer)].all()).slice(0, end);
    }
    view<E const> v(index_t layer, index_t end) const {
        return view<E const>(tokens_->v[static_cast<std::size_t>(layer)].all()).slice(0, end);
    }

private:
    std::shared_ptr<raw_tokens<E>> tokens_;
};

template <bf::element E>
class dense_system final : public raw_system<E, dense_system<E>> {
public:
    using raw_system<E, dense_system<E>>::raw_system;

    template <class F>
    void with_bound(machine const& m, index_t layer, index_t position, index_t tokens, F const& f) {
        bf::pool const all(this->k(layer, position + tokens), this->v(layer, position + tokens),
                           bf::visible::causal_prefix());
        f(bf::make_problem(m, this->q(layer, position, tokens), this->out(tokens), {.q_position = position}, all));
    }
};

template <bf::element E>
class block_sparse_system final : public raw_system<E, block_sparse_system<E>> {
public:
    using raw_system<E, block_sparse_system<E>>::raw_system;

    template <class F>
    void with_bound(machine const& m, index_t layer, index_t position, index_t tokens, F const& f) {
        index_t const length = position + tokens;
        index_t const bs     = this->settings().block_size;
        block_row const rule = this->shared().routing.over_blocks(layer, length);
        bf::visible::routed_blocks const sees{
            topology::make_row_source(rule, {.heads = 1, .nodes = bf::detail::ceil_div(this->capacity(), bs)}), bs};
        bf::pool const all(this->k(layer, length), this->v(layer, length), sees);
        f(bf::make_problem(m, this->q(layer, position, tokens), this->out(tokens), {.q_position = position}, all));
    }
};

template <bf::element E>
class window_system final : public system_of<E, window_system<E>> {
public:
    explicit window_system(std::shared_ptr<shared_state<E>> shared)
        : system_of<E, window_system<E>>(shared),
          ring_(bf::detail::round_up(shared->settings.exact_window - 1 + shared->settings.step, bf::tile_slots)),
          rows_(shared->settings, ring_) {
        // Slots that are not written yet are never shown; kernels may still load their tile, so they hold numbers.
        for (std::size_t l = 0; l < rows_.k.size(); ++l)
            for (slab<E> const* side : {&rows_.k[l], &rows_.v[l]})
                std::memset(static_cast<void*>(side->all().data()), 0, static_cast<std::size_t>(side->bytes()));
    }

    void append(machine const&, index_t layer, index_t position, index_t tokens) override {
        auto const l        = static_cast<std::size_t>(layer);
        auto const k        = this->shared().inputs.k(layer, position, tokens);
        auto const v        = this->shared().inputs.v(layer, position, tokens);
        index_t const first = position % ring_;
        index_t const fits  = std::min(tokens, ring_ - first);
        copy_rows<E>(k.slice(0, fits), rows_.k[l].all(), first, fits);
        copy_rows<E>(v.slice(0, fits), rows_.v[l].all(), first, fits);
        if (fits == tokens) return;
        copy_rows<E>(k.slice(fits, tokens - fits), rows_.k[l].all(), 0, tokens - fits);
        copy_rows<E>(v.slice(fits, tokens - fits), rows_.v[l].all(), 0, tokens - fits);
    }
    index_t retained_bytes(index_t tokens) const override {
        return std::min(tokens, this->settings().exact_window) * this->settings().token_bytes();
    }
    index_t allocated_bytes() const override { return rows_.bytes(); }

    template <class F>
    void with_bound(machine const& m, index_t layer, index_t position, index_t tokens, F const& f) {
        auto const l = static_cast<std::size_t>(layer);
        bf::pool const ring(ring_view<E>{rows_.k[l].all(), position + tokens},
                            ring_view<E>{rows_.v[l].all(), position + tokens},
                            bf::visible::exact_window(this->settings().exact_window));
        f(bf::make_problem(m, this->q(layer, position, tokens), this->out(tokens), {.q_position = position}, ring));
    }

private:
    index_t ring_;
    raw_tokens<E> rows_;
};

template <bf::element E, bf::cache_mix Mix>
class compressed_system final : public system_of<E, compressed_system<E, Mix>> {
public:
    compressed_system(std::shared_ptr<shared_state<E>> shared, index_t capacity, Mix const& mix)
        : system_of<E, compressed_system<E, Mix>>(shared) {
        for (index_t l = 0; l < shared->settings.model.layers; ++l)
            caches_.emplace_back(shared->settings.cache(capacity), mix);
    }

    void append(machine const& m, index_t layer, index_t position, index_t tokens) override {
        cache& c = caches_[static_cast<std::size_t>(layer)];
        if (c.tokens() != position) throw std::logic_error("compressed: tokens out of order");
        auto const bytes = static_cast<std::size_t>(bf::append_workspace_bytes(m, c));
        if (scratch_.size() < bytes) scratch_ = std::vector<std::byte>(bytes);
        bf::append(m, c, this->shared().inputs.k(layer, position, tokens),
                   this->shared().inputs.v(layer, position, tokens), {.workspace = scratch_});
    }
    void clear() override {
        for (cache& c : caches_) c.clear();
    }
    index_t retained_bytes(index_t) const override {
        index_t bytes = 0;
        for (cache const& c : caches_) bytes += c.retained_bytes();
        return bytes;
    }
    index_t allocated_bytes() const override {
        index_t bytes = 0;
        for (cache const& c : caches_) bytes += c.allocated_bytes();
        return bytes;
    }

    template <class F>
    void with_bound(machine const& m, index_t layer, index_t position, index_t tokens, F const& f) {
        cache const& c         = caches_[static_cast<std::size_t>(layer)];
        summary_row const rows = this->shared().routing.over_summaries(layer, position + tokens);
        f(bf::make_problem(m, this->q(layer, position, tokens), c, rows, this->out(tokens)));
    }

private:
    using cache = bf::compressed_kv_cache<Mix>;
    std::vector<cache> caches_;
    std::vector<std::byte> scratch_;
};

template <bf::element E>
class rung_of final : public ladder_rung {
public:
    rung_of(ladder_settings const& s, index_t context) : shared_(std::make_shared<shared_state<E>>(s, context)) {}

    std::unique_ptr<ladder_system> make(std::string const& name, index_t capacity) override {
        if (name == "dense") return std::make_unique<dense_system<E>>(shared_, capacity);
        if (name == "block_sparse") return std::make_unique<block_sparse_system<E>>(shared_, capacity);
        if (name == "window") return std::make_unique<window_system<E>>(shared_);
        return with_summaries<E>(shared_->settings.summaries, [&](auto const& mix) -> std::unique_ptr<ladder_system> {
            using system = compressed_system<E, std::remove_cvref_t<decltype(mix)>>;
            return std::make_unique<system>(shared_, capacity, mix);
        });
    }

private:
    std::shared_ptr<shared_state<E>> shared_;
};

} // namespace

std::unique_ptr<ladder_rung> make_rung(ladder_settings const& s, index_t context) {
    switch (s.storage) {
    case bf::element_type::f32:
        return std::make_unique<rung_of<float>>(s, context);
    case bf::element_type::f16:
        return std::make_unique<rung_of<bf::float16>>(s, context);
    case bf::element_type::bf16:
        return std::make_unique<rung_of<bf::bfloat16>>(s, context);
    }
    return nullptr;
}

} // namespace bench
