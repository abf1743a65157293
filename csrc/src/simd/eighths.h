/* c*2^(j/8) for j = 0 to 7 with c = 1 - 42967*2^-24, at which all are within 0.08*2^-24 of a float: its
 * bits, without those of the exponent of 1 and less j in the exponent's lowest. Added to k << 20 with
 * k % 8 = j they make c*2^(k/8 - 127). Twice, to fill the longest register. */
static const uint32_t fsm_eighths[16] = {
    0xffff5829, 0xfffb3a3e, 0xfff7d424, 0xfff59202,
    0xfff48e45, 0xfff4e5be, 0xfff6b7da, 0xfffa26de,
    0xffff5829, 0xfffb3a3e, 0xfff7d424, 0xfff59202,
    0xfff48e45, 0xfff4e5be, 0xfff6b7da, 0xfffa26de,
};
