// int16 outer products, two k a step, summed exactly in int32: for each block of K the sums of 16 rows x 64 columns.
#include "sme_asm.h"

// x0 SmeI16: x1 a, x2 bytes from tile to tile, x3 b, x4 sums, x5 blocks, x6 tiles, x7 steps of a block, x16 steps of its
// minima; of a block of A nobody reads x19 bytes between the two, and x17 behind them
        .globl SYMBOL(puna_sme_i16)
        .p2align 4
SYMBOL(puna_sme_i16):
        enter
        ldp x1, x2, [x0]
        ldp x3, x4, [x0, #16]
        ldp x5, x6, [x0, #32]
        ldp x7, x16, [x0, #48]
        ldp x19, x17, [x0, #64]
7:      mov x8, x1
        mov x9, x3
        add x11, x1, x2
        mov x0, x5
8:      zero {za}
        chain smopa, h, x8, x9, x7, x10, x11
        store_tiles x4
        cbz x16, 9f
        add x8, x8, x19
        zero {za}
        chain smops, h, x8, x9, x16, x10, x11
        store_tiles x4
9:      add x8, x8, x17
        add x11, x8, x2
        subs x0, x0, #1
        b.ne 8b
        add x1, x1, x2
        subs x6, x6, #1
        b.ne 7b
        leave

// 16 rows of Acts128 to operands: x0 sixteen pointers, x1 blocks, x2 where to. A block becomes 64 steps of (16 rows, 2 k),
// 2 of negative sums of 32, and 4 of negative sums of 16.
.macro four_rows at, w
        ldp x5, x6, [x0, #\at]
        ldp x7, x8, [x0, #\at+16]
        add x5, x5, x3
        add x6, x6, x3
        add x7, x7, x3
        add x8, x8, x3
        part 0, \w
        part 1, \w
        part 2, \w
        part 3, \w
.endm
.macro part i, w
        ld1sb {z0.h}, p0/z, [x5, #\i, mul vl]
        ld1sb {z1.h}, p0/z, [x6, #\i, mul vl]
        ld1sb {z2.h}, p0/z, [x7, #\i, mul vl]
        ld1sb {z3.h}, p0/z, [x8, #\i, mul vl]
        mova za\i\()h.s[\w, 0:3], {z0.s-z3.s}
.endm
// Of each row two words of pairs into tile 0, and eight words narrowed to four into tile 1.
.macro four_sums at, w
        ldp x5, x6, [x0, #\at]
        ldp x7, x8, [x0, #\at+16]
        sums_of 0, 4, x5
        sums_of 1, 5, x6
        sums_of 2, 6, x7
        sums_of 3, 7, x8
        mova za0h.s[\w, 0:3], {z0.s-z3.s}
        mova za1h.s[\w, 0:3], {z4.s-z7.s}
.endm
.macro sums_of pairs, sums, row
        ld1w {z\pairs\().s}, p1/z, [\row, x9, lsl #2]
        ld1w {z\sums\().s}, p2/z, [\row, x4, lsl #2]
        uzp1 z\sums\().h, z\sums\().h, z\sums\().h
.endm

        .globl SYMBOL(puna_sme_i16_pack)
        .p2align 4
SYMBOL(puna_sme_i16_pack):
        enter
        ptrue p1.s, vl2
        ptrue p2.s, vl8
        mov x3, #0              // bytes of the blocks behind us
1:      four_rows 0, w12
        four_rows 32, w13
        four_rows 64, w14
        four_rows 96, w15
        store_columns 0, x2
        store_columns 1, x2
        store_columns 2, x2
        store_columns 3, x2
        add x4, x3, #128        // where a block has its negative sums, and its negative pairs
        add x9, x3, #160
        lsr x4, x4, #2
        lsr x9, x9, #2
        four_sums 0, w12
        four_sums 32, w13
        four_sums 64, w14
        four_sums 96, w15
        mova {z0.s-z3.s}, za0v.s[w12, 0:3]
        mova {z4.s-z7.s}, za1v.s[w12, 0:3]
        st1w {z0.s-z1.s}, pn8, [x2]
        add x2, x2, #128
        st1w {z4.s-z7.s}, pn8, [x2]
        add x2, x2, #256
        add x3, x3, #176        // sizeof(Acts128)
        subs x1, x1, #1
        b.ne 1b
        leave
