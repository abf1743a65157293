/* The bits of c*2^(j/8) for j = 0 to 7, without those of the exponent of 1 and less j in the exponent's
 * lowest. Added to k << 20, or in double k << 49, with k % 8 = j they make c*2^(k/8 - bias). */

/* c = 1 - 42967*2^-24, at which all are within 0.08*2^-24 of a float. Twice, to fill the longest
 * register. */
static const uint32_t fsm_eighths_f32[16] = {
    0xffff5829, 0xfffb3a3e, 0xfff7d424, 0xfff59202,
    0xfff48e45, 0xfff4e5be, 0xfff6b7da, 0xfffa26de,
    0xffff5829, 0xfffb3a3e, 0xfff7d424, 0xfff59202,
    0xfff48e45, 0xfff4e5be, 0xfff6b7da, 0xfffa26de,
};

/* c = 1 - 80742943*2^-53, at which all are within 0.06*2^-53 of a double: high and low words. */
#define FSM_EIGHTHS_F64(entry)                                                                     \
    entry(0xffffffff, 0xfb2ff5e1), entry(0xffff72b8, 0x39dd8b41), entry(0xffff06fe, 0x075523dc),   \
        entry(0xfffebfda, 0xd217492e), entry(0xfffea09e, 0x63180cd2),                              \
        entry(0xfffeace5, 0x3e749893), entry(0xfffee89f, 0x954ecf2a),                              \
        entry(0xffff5818, 0xd891db82)
#define FSM_WHOLE(high, low) (uint64_t)(high) << 32 | (low)
#define FSM_HIGH(high, low) (high)
#define FSM_LOW(high, low) (low)
