// Attention: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

// The arrays that forward and backward read.
template <class T>
class AttentionArrays {
 public:
  AttentionArrays(const py::object& query, const py::object& key, const py::object& value,
                  const py::object& query_mask, const py::object& mask, const py::object& v,
                  double scale)
      : query_(as_contiguous<T>("queries", query, {"T", "B", "K"})),
        key_(as_contiguous<T>("keys", key, {"T", query_.shape(1), query_.shape(2)})),
        value_(as_contiguous<T>("values", value, {key_.shape(0), key_.shape(1), "V"})),
        queries_(query_mask, query_.shape(0), query_.shape(1)),
        keys_(mask, key_.shape(0), key_.shape(1)),
        scale_(static_cast<T>(scale)) {
    if (!v.is_none()) v_ = as_contiguous<T>("v", v, {query_.shape(2)});
    additive_ = !v.is_none();
  }
  AttentionInputs<T> record() const {
    AttentionInputs<T> in{};
    in.B = B(), in.K = K(), in.V = V();
    in.queries = queries_.record(), in.keys = keys_.record();
    in.query = query_.data(), in.key = key_.data(), in.value = value_.data();
    in.v = additive_ ? v_.data() : nullptr, in.scale = scale_;
    return in;
  }
  Index Tq() const { return query_.shape(0); }
  Index Tk() const { return key_.shape(0); }
  Index B() const { return query_.shape(1); }
  Index K() const { return query_.shape(2); }
  Index V() const { return value_.shape(2); }
  bool additive() const { return additive_; }
  // Whether there are steps that the core does not write to.
  bool leaves_some() const {
    return !queries_.are_all() || !keys_.are_all() || Tq() == 0 || Tk() == 0;
  }

 private:
  py::array_t<T, py::array::c_style> query_, key_, value_, v_;
  StepLists queries_, keys_;
  T scale_;
  bool additive_;
};

template <class T>
py::tuple attention_of(const AttentionArrays<T>& in) {
  const bool some = in.leaves_some();
  py::array_t<T> context = result_or_zeros<T>({in.Tq(), in.B(), in.V()}, some);
  py::array_t<T> weights = result_or_zeros<T>({in.Tq(), in.B(), in.Tk()}, some);
  AttentionCall<T> call{};
  call.in = in.record(), call.threads = threads();
  call.weights = weights.mutable_data(), call.context = context.mutable_data();
  const auto& of_type = *kernels().of<T>().modules;
  const Block<char> workspace = block<char>(of_type.attention_workspace(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    of_type.attention(call, workspace.get());
  });
  return py::make_tuple(context, weights);
}

// -> (context, weights)
py::tuple attention(const py::object& query, const py::object& key, const py::object& value,
                    const py::object& query_mask, const py::object& mask, const py::object& v,
                    double scale) {
  return py::isinstance<py::array_t<double>>(query)
             ? attention_of(AttentionArrays<double>(query, key, value, query_mask, mask, v, scale))
             : attention_of(AttentionArrays<float>(query, key, value, query_mask, mask, v, scale));
}

template <class T>
py::tuple attention_gradient_of(const AttentionArrays<T>& in, const py::object& weights_given,
                                const py::object& dcontext_given, bool only_queries) {
  const auto weights = as_contiguous<T>("weights", weights_given, {in.Tq(), in.B(), in.Tk()});
  const auto dcontext = as_contiguous<T>("dcontext", dcontext_given, {in.Tq(), in.B(), in.V()});
  const bool some = in.leaves_some(), all = !only_queries, sums = all && in.additive();
  py::array_t<T> dquery = result_or_zeros<T>({in.Tq(), in.B(), in.K()}, some), dkey, dvalue;
  py::array_t<T> dv_of_rows, dv;
  if (all) dkey = result_or_zeros<T>({in.Tk(), in.B(), in.K()}, some);
  if (all) dvalue = result_or_zeros<T>({in.Tk(), in.B(), in.V()}, some);
  if (sums) dv_of_rows = result_or_zeros<T>({in.B(), in.K()}, true);
  if (sums) dv = result<T>({in.K()});
  AttentionGradientCall<T> call{};
  call.in = in.record(), call.threads = threads();
  call.weights = weights.data(), call.dcontext = dcontext.data();
  call.dquery = dquery.mutable_data();
  if (all) call.dkey = dkey.mutable_data(), call.dvalue = dvalue.mutable_data();
  if (sums) call.dv_of_rows = dv_of_rows.mutable_data(), call.dv = dv.mutable_data();
  const auto& of_type = *kernels().of<T>().modules;
  const Block<char> workspace = block<char>(of_type.attention_gradient_workspace(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    of_type.attention_gradient(call, workspace.get());
  });
  if (only_queries) return py::make_tuple(dquery, py::none(), py::none(), py::none());
  return py::make_tuple(dquery, dkey, dvalue, sums ? py::object(dv) : py::none());
}

// -> (dqueries, dkeys, dvalues, dv)
py::tuple attention_gradient(const py::object& query, const py::object& key,
                             const py::object& value, const py::object& query_mask,
                             const py::object& mask, const py::object& v, double scale,
                             const py::object& weights, const py::object& dcontext,
                             bool only_queries) {
  const auto of = [&](const auto& in) {
    return attention_gradient_of(in, weights, dcontext, only_queries);
  };
  return py::isinstance<py::array_t<double>>(query)
             ? of(AttentionArrays<double>(query, key, value, query_mask, mask, v, scale))
             : of(AttentionArrays<float>(query, key, value, query_mask, mask, v, scale));
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("real_steps", &real_steps, py::arg("lengths"), py::arg("mask"), py::arg("T"), py::arg("B"),
        py::arg("of") = "");
  m.def("attention", &attention, py::arg("queries"), py::arg("keys"), py::arg("values"),
        py::arg("query_mask"), py::arg("mask"), py::arg("v"), py::arg("scale"));
  m.def("attention_gradient", &attention_gradient, py::arg("queries"), py::arg("keys"),
        py::arg("values"), py::arg("query_mask"), py::arg("mask"), py::arg("v"), py::arg("scale"),
        py::arg("weights"), py::arg("dcontext"), py::arg("only_queries"));
}

}  // namespace rnnkern
