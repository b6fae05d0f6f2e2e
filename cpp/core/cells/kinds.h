// The table of kinds: each cell's sizes, states and parameters, one row a cell.
//
// The kernels, the bindings, the naive reference, the fuzzer and the build read this table. In the
// core and the bindings nothing else names a parameter or counts states. Records and constants
// only: no code (see problem.h).
#pragma once

namespace rnnkern {

// What the extents of shapes are made of: G*H, H, P, I, 1, and P/N, one head's part of h. In the
// order of stack.h's tables.
enum class Extent : int { gates, hidden, outputs, inputs, one, head };

// What a parameter does in a cell. Records of parameters are arrays indexed by role.
enum Role : int {
  input_matrix,       // its product with x gives the input's part of the gates' arguments
  recurrent_matrix,   // its product with h' gives the recurrent part; P/N columns: of each gate the
                      // blocks on the diagonal, one a head, which see no other head's h'
  input_bias,         // added to the input's part
  recurrent_bias,     // added to the recurrent part
  projection_matrix,  // its product with the cell's H outputs gives h
  unit_vectors,       // one or several values for each unit, which the cell itself reads
  input_gain,         // factors of the input's part after layer norm
  recurrent_gain,     // factors of the recurrent part after layer norm
  state_gain,         // factors of c after layer norm
  state_bias,         // added to c after layer norm
  kRoles
};
inline constexpr bool kIsBias[kRoles] = {false, false, true, true, false, false};

// The option of a layer without which it lacks a parameter, which then counts as zeros.
enum class Needs : int { nothing, bias, peephole };

struct ParameterInfo {
  const char* name;  // before "_l0", "_l0_reverse"; null: the end of a list
  Role role;
  Extent rows, columns;  // columns of extent one: a vector
  int times = 1;         // rows: so many times the extent
  Needs needs = Needs::nothing;
};

struct StateInfo {
  const char* name;  // null: the end of a list
  Extent width;
  double fresh = 0;   // its elements where a sequence begins
  bool flows = true;  // whether a gradient flows through it; otherwise its gradient is zero
};

// States besides h: elementwise, H wide, carried from step to step.
inline constexpr int kMostCarried = 3;
inline constexpr int kMostStates = 1 + kMostCarried;

struct KindInfo {
  const char* name;
  int gates;         // G: the input matrix has G*H rows
  int saved;         // vectors of H that forward saves for backward, a step and row
  bool elementwise;  // the recurrence takes no product: threads share units without barriers
  StateInfo states[kMostStates + 1];  // h first
  ParameterInfo parameters[kRoles + 1];
  bool reads_x = false;  // the cell itself acts on x, unit by unit: I is H
};

inline constexpr ParameterInfo kWeightIh{"weight_ih", input_matrix, Extent::gates, Extent::inputs};
inline constexpr ParameterInfo kWeightHh{"weight_hh", recurrent_matrix, Extent::gates,
                                         Extent::outputs};
inline constexpr ParameterInfo kBiasIh{"bias_ih",   input_bias, Extent::gates,
                                       Extent::one, 1,          Needs::bias};
inline constexpr ParameterInfo kBiasHh{"bias_hh", recurrent_bias, Extent::gates, Extent::one,
                                       1,         Needs::bias};
inline constexpr ParameterInfo kWeightHr{"weight_hr", projection_matrix, Extent::outputs,
                                         Extent::hidden};
inline constexpr ParameterInfo kWeightHeads{"weight_hh", recurrent_matrix, Extent::gates,
                                            Extent::head};
// The recurrent weights of units that see their own state alone, and peepholes of i, f and o.
inline constexpr ParameterInfo kWeightOwn{"weight_hh", unit_vectors, Extent::hidden, Extent::one};
inline constexpr ParameterInfo kWeightCh{"weight_ch", unit_vectors, Extent::hidden, Extent::one, 3};
inline constexpr ParameterInfo kPeepholes{"weight_ch", unit_vectors,   Extent::hidden, Extent::one,
                                          3,           Needs::peephole};
// Layer norm.
inline constexpr ParameterInfo kGainIh{"gain_ih", input_gain, Extent::gates, Extent::one};
inline constexpr ParameterInfo kGainHh{"gain_hh", recurrent_gain, Extent::gates, Extent::one};
inline constexpr ParameterInfo kGainC{"gain_c", state_gain, Extent::hidden, Extent::one};
inline constexpr ParameterInfo kBiasC{"bias_c",    state_bias, Extent::hidden,
                                      Extent::one, 1,          Needs::bias};
// With coupled gates: of i and o.
inline constexpr ParameterInfo kPeepholesOfTwo{
    "weight_ch", unit_vectors, Extent::hidden, Extent::one, 2, Needs::peephole};
// How fast a unit forgets.
inline constexpr ParameterInfo kLambda{"lambda", unit_vectors, Extent::hidden, Extent::one};
inline constexpr StateInfo kH{"h", Extent::outputs}, kC{"c", Extent::hidden},
    kN{"n", Extent::hidden}, kM{"m", Extent::hidden, -__builtin_inf(), false};

// clang-format off
// ROW(kind, the cell's struct, the rest of KindInfo). The build compiles each row on its own.
#define RNNKERN_KINDS(ROW)                                                                         \
  ROW(rnn_tanh, RnnTanh, 1, 0, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})              \
  ROW(rnn_relu, RnnRelu, 1, 0, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})              \
  ROW(lstm, Lstm, 4, 4, false, {kH, kC}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})                 \
  ROW(gru, Gru, 3, 4, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})                       \
  ROW(gru_reset_before, GruResetBefore, 3, 3, false, {kH},                                         \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh})                                                    \
  ROW(lstm_clipped, LstmClipped, 4, 4, false, {kH, kC}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})  \
  ROW(lstm_projected, LstmProjected, 4, 4, false, {kH, kC},                                        \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightHr})                                         \
  ROW(min_gru, MinGru, 2, 2, true, {kH}, {kWeightIh, kBiasIh})                                     \
  ROW(min_lstm, MinLstm, 3, 4, true, {kH}, {kWeightIh, kBiasIh})                                   \
  ROW(ind_rnn_tanh, IndRnnTanh, 1, 0, true, {kH}, {kWeightIh, kWeightOwn, kBiasIh})                \
  ROW(ind_rnn_relu, IndRnnRelu, 1, 0, true, {kH}, {kWeightIh, kWeightOwn, kBiasIh})                \
  ROW(lstm_peephole, LstmPeephole, 4, 4, false, {kH, kC},                                          \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightCh})                                         \
  ROW(rnn_general, RnnGeneral, 1, 1, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})        \
  ROW(lstm_general, LstmGeneral, 4, 4, false, {kH, kC},                                            \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kPeepholes})                                        \
  ROW(lstm_general_projected, LstmGeneralProjected, 4, 4, false, {kH, kC},                         \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kPeepholes, kWeightHr})                             \
  ROW(cifg_general, CifgGeneral, 3, 3, false, {kH, kC},                                            \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kPeepholesOfTwo})                                   \
  ROW(cifg_general_projected, CifgGeneralProjected, 3, 3, false, {kH, kC},                         \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kPeepholesOfTwo, kWeightHr})                        \
  ROW(gru_general, GruGeneral, 3, 4, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})        \
  ROW(gru_reset_before_general, GruResetBeforeGeneral, 3, 4, false, {kH},                          \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh})                                                    \
  ROW(rg_lru, RgLru, 2, 4, true, {kH}, {kWeightIh, kBiasIh, kLambda}, true)                        \
  ROW(min_gru_identity, MinGruIdentity, 2, 2, true, {kH}, {kWeightIh, kBiasIh})                    \
  ROW(min_gru_tanh, MinGruTanh, 2, 2, true, {kH}, {kWeightIh, kBiasIh})                            \
  ROW(min_lstm_identity, MinLstmIdentity, 3, 4, true, {kH}, {kWeightIh, kBiasIh})                  \
  ROW(min_lstm_tanh, MinLstmTanh, 3, 4, true, {kH}, {kWeightIh, kBiasIh})                          \
  ROW(lstm_haste, LstmHaste, 4, 8, false, {kH, kC},                                                \
      {kWeightIh, kWeightHh, kBiasIh, kGainIh, kGainHh, kGainC, kBiasC})                           \
  ROW(lstm_haste_projected, LstmHasteProjected, 4, 8, false, {kH, kC},                             \
      {kWeightIh, kWeightHh, kBiasIh, kGainIh, kGainHh, kGainC, kBiasC, kWeightHr})                \
  ROW(lstm_fastrnns, LstmFastrnns, 4, 8, false, {kH, kC},                                          \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kGainIh, kGainHh, kGainC, kBiasC})                  \
  ROW(lstm_fastrnns_projected, LstmFastrnnsProjected, 4, 8, false, {kH, kC},                       \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kGainIh, kGainHh, kGainC, kBiasC, kWeightHr})       \
  ROW(gru_haste, GruHaste, 3, 6, false, {kH},                                                      \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kGainIh, kGainHh})                                  \
  ROW(slstm, Slstm, 4, 5, false, {kH, kC, kN, kM}, {kWeightIh, kWeightHeads, kBiasIh})             \
  ROW(rnn_tanh_noisy, RnnTanhNoisy, 1, 1, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})   \
  ROW(rnn_relu_noisy, RnnReluNoisy, 1, 1, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})   \
  ROW(lstm_noisy, LstmNoisy, 4, 4, false, {kH, kC}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})      \
  ROW(gru_noisy, GruNoisy, 3, 4, false, {kH}, {kWeightIh, kWeightHh, kBiasIh, kBiasHh})            \
  ROW(gru_reset_before_noisy, GruResetBeforeNoisy, 3, 3, false, {kH},                              \
      {kWeightIh, kWeightHh, kBiasIh, kBiasHh})
// clang-format on

#define RNNKERN_NAME(kind, Cell, ...) kind,
enum class Kind : int { RNNKERN_KINDS(RNNKERN_NAME) };
#undef RNNKERN_NAME

#define RNNKERN_INFO(kind, Cell, ...) {#kind, __VA_ARGS__},
inline constexpr KindInfo kKinds[] = {RNNKERN_KINDS(RNNKERN_INFO)};
#undef RNNKERN_INFO
inline constexpr int kKindCount = static_cast<int>(sizeof(kKinds) / sizeof(kKinds[0]));

// ONNX's activations (operators RNN, GRU and LSTM).
enum class ActivationKind : int {
  relu,
  tanh,
  sigmoid,
  affine,
  leaky_relu,
  thresholded_relu,
  scaled_tanh,
  hard_sigmoid,
  elu,
  softsign,
  softplus
};
inline constexpr const char* kActivationNames[] = {
    "Relu",       "Tanh",        "Sigmoid", "Affine",   "LeakyRelu", "ThresholdedRelu",
    "ScaledTanh", "HardSigmoid", "Elu",     "Softsign", "Softplus"};
inline constexpr int kActivations =
    static_cast<int>(sizeof(kActivationNames) / sizeof(kActivationNames[0]));
struct Activation {
  ActivationKind kind;
  double alpha, beta;
};

// What training draws in a cell: for each unit a value that is zero with some probability p. An
// evaluation takes the mean.
enum Noise : int {
  zoneout_h,          // 1 where h takes its new value, 0 where it keeps the one before
  zoneout_c,          // the same for c
  recurrent_dropout,  // the candidate's factor: 0 or 1 / (1 - p)
  kNoises
};

// What the products of a layer multiply: both operands as they are; weights rounded to bf16; or
// both operands rounded to bf16. Sums have the arithmetic's type.
enum class Precision : int { full, bf16_weights, bf16_products };
inline constexpr const char* kPrecisionNames[] = {"full", "bf16_weights", "bf16_products"};

// What a cell can be told besides its parameters; infinity: off.
struct CellConstants {
  double cell_clip;        // bound of the elements of c
  double projection_clip;  // bound of the elements of h, after the projection
  // Of cells whose name ends in general: the bound of their gates' arguments, and their activations
  // (gates, candidate, and of an LSTM c).
  double forward_clip;
  Activation activations[3];
  double noise[kNoises];                  // p
  int heads = 1;                          // N, of a cell with heads
  bool exp_forget = false;                // of an sLSTM: exp as the forget gate's nonlinearity
  Precision precision = Precision::full;  // float only, if not full
};

}  // namespace rnnkern
