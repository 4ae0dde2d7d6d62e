// The extension's face in Python: engine/_native.pyi says the same in types.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "attention_op.h"
#include "kernels.h"
#include "layer_op.h"
#include "pack.h"
#include "page_store.h"
#include "page_tokens.h"
#include "pool.h"
#include "probe.h"
#include "row_ops.h"

namespace nb = nanobind;
using namespace puna;
using nb::literals::operator""_a;

namespace {

using Ints = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;

std::vector<int32_t> ints(const Ints &a) { return {a.data(), a.data() + a.size()}; }

std::shared_ptr<AttentionPlan> make_plan(int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, int64_t window, float eps,
                                         bool interleaved, const Ints &starts, const Ints &past, const Ints &tables,
                                         const mx::array &rope, const std::optional<Ints> &picks) {
  if (tables.ndim() != 2) throw std::invalid_argument("[AttentionPlan] tables is (B, M)");
  return std::make_shared<AttentionPlan>(AttentionShape{heads, kv_heads, head_dim, scale, window}, eps, interleaved, ints(starts),
                                         ints(past), ints(tables), static_cast<int64_t>(tables.shape(1)), rope,
                                         picks ? ints(*picks) : std::vector<int32_t>{});
}

// A page of a model is a megabyte or so: other threads of Python go on while it is copied.
void copied(const LayerPages &layers, int64_t source, int64_t target) {
  nb::gil_scoped_release others_go_on;
  copy_page(layers, source, target);
}

nb::bytes bytes_of_page(const LayerPages &layers, int64_t page) {
  auto out = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(page_bytes(layers))));
  if (!out.is_valid()) nb::raise_python_error();
  {
    char *to = PyBytes_AsString(out.ptr());
    nb::gil_scoped_release others_go_on;
    read_page(layers, page, to);
  }
  return out;
}

void page_from_bytes(const LayerPages &layers, int64_t page, const nb::bytes &content) {
  if (content.size() != page_bytes(layers)) throw std::invalid_argument("[write_page] content is not the bytes of one page");
  const char *from = content.c_str();
  nb::gil_scoped_release others_go_on;
  write_page(layers, page, from);
}

void tokens_put(const mx::array &pages, const Ints &table, int64_t first, const mx::array &tokens) {
  const std::vector<int32_t> own = ints(table);
  nb::gil_scoped_release others_go_on;
  put_tokens(pages, own, first, tokens);
}

mx::array tokens_taken(const mx::array &pages, const Ints &table, int64_t first, int64_t count, int64_t kv_heads, int64_t head_dim) {
  const std::vector<int32_t> own = ints(table);
  nb::gil_scoped_release others_go_on;
  return take_tokens(pages, own, first, count, kv_heads, head_dim);
}

template <class Real>
using Logits = nb::ndarray<const Real, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Real>
void weigh_logits(const Logits<Real> &logits, double highest, double temperature, double least, int64_t strip, const Sums &sums) {
  const int64_t n = logits.size();
  if (strip < 1 || static_cast<int64_t>(sums.size()) != (n + strip - 1) / strip) {
    throw std::invalid_argument("[weigh] sums is (ceil(V / strip),)");
  }
  const Weighing weighing{highest, temperature, least, strip};
  nb::gil_scoped_release others_go_on;
  if constexpr (std::is_same_v<Real, float>) kernels().rows->weigh32(logits.data(), weighing, n, sums.data());
  else kernels().rows->weigh64(logits.data(), weighing, n, sums.data());
}

}  // namespace

NB_MODULE(_native, m) {
  nb::module_::import_("mlx.core");  // registers mx::array in the domain that we share
  m.attr("PAGE") = PAGE;
  m.def("kernels", [] { return std::string(kernels().name); });
  m.def("set_threads", &set_threads, "threads"_a);
  m.def("threads", [] { return pool().threads(); });
  m.def("int8_peak", &int8_peak);
  m.def("fp32_peak", &fp32_peak);
  m.def("read_rate", &read_rate, "bytes"_a);

  nb::class_<Panels>(m, "Panels")
      .def_prop_ro("rows", [](const Panels &p) { return p.rows; })
      .def_prop_ro("cols", [](const Panels &p) { return p.cols; })
      .def_prop_ro("nbytes", [](const Panels &p) { return p.nbytes(); })
      .def("tobytes", [](const Panels &p) { return nb::bytes(p.panel(0), static_cast<size_t>(p.nbytes())); });
  m.def("pack", &pack, "planes"_a, "format"_a, "rows"_a, "cols"_a, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Room>(m, "Room").def(nb::init<>()).def_prop_ro("nbytes", &Room::nbytes);
  m.def("pack_arrays", &pack_arrays, "planes"_a, "format"_a, "rows"_a, "cols"_a, "room"_a.none() = nb::none(),
        nb::call_guard<nb::gil_scoped_release>());
  m.def("decode_row", &decode_row_array, "panels"_a, "row"_a);

  m.def("embed", &embed, "tokens"_a, "table"_a);
  m.def("project", &project, "x"_a, "weights"_a, "biases"_a, "norm"_a.none() = nb::none(), "eps"_a = 0.0f);
  m.def("add_projected", &add_projected, "residual"_a, "x"_a, "weight"_a, "bias"_a);
  m.def("add_gated_mlp", &add_gated_mlp, "x"_a, "weights"_a, "biases"_a, "norm"_a.none() = nb::none(), "eps"_a = 0.0f);

  m.def("weigh", &weigh_logits<float>, "logits"_a, "highest"_a, "temperature"_a, "least"_a, "strip"_a, "sums"_a);
  m.def("weigh", &weigh_logits<double>, "logits"_a, "highest"_a, "temperature"_a, "least"_a, "strip"_a, "sums"_a);
  m.def("norm", &norm, "x"_a, "weight"_a, "eps"_a);
  nb::class_<AttentionPlan>(m, "AttentionPlan")
      .def_static("of", &make_plan, "heads"_a, "kv_heads"_a, "head_dim"_a, "scale"_a, "window"_a, "eps"_a, "interleaved"_a,
                  "starts"_a, "past"_a, "tables"_a, "rope"_a, "picks"_a.none() = nb::none());
  m.def("unwritten_pages", &unwritten_pages, "pages"_a, "elements"_a, "dtype"_a);
  m.def("page_elements", &page_elements, "kv_heads"_a, "head_dim"_a, "dtype"_a);
  m.def("page_bytes", &page_bytes, "layers"_a);
  m.def("copy_page", &copied, "layers"_a, "source"_a, "target"_a);
  m.def("read_page", &bytes_of_page, "layers"_a, "page"_a);
  m.def("write_page", &page_from_bytes, "layers"_a, "page"_a, "content"_a);
  m.def("put_tokens", &tokens_put, "pages"_a, "table"_a, "first"_a, "tokens"_a);
  m.def("take_tokens", &tokens_taken, "pages"_a, "table"_a, "first"_a, "count"_a, "kv_heads"_a, "head_dim"_a);
  m.def("attend", &attend, "plan"_a, "pages"_a, "q"_a, "k"_a, "v"_a, "q_norm"_a.none(), "k_norm"_a.none());
  nb::class_<AttentionWeights>(m, "AttentionWeights")
      .def(nb::init<mx::array, std::vector<Matrix>, std::vector<Bias>, Norm, Norm>(), "norm"_a, "matrices"_a, "biases"_a,
           "q_norm"_a.none(), "k_norm"_a.none());
  m.def("add_attention", &add_attention, "x"_a, "pages"_a, "plan"_a, "weights"_a, "only_picked"_a);
}
