# A boot sector in real mode, for configs/bootsector.toml: what a processor runs that has only ports to speak through.
#
# It prints through the UART at 3F8. Sector 1 of the IDE disk at 1F0 holds a count of boots and a pattern made of it:
# it reads the sector and verifies it, writes the next one, flushes, reads it back and verifies that. AX at the HLT
# says how it went: 0 well, 1 wrong data, 2 the disk refused.
#
#     scripts/bootsector        assembles this to configs/bootsector.bin

        .code16
        .set    BUFFER, 0x8000          # the sector: count, "PV", 254 words of pattern
        .set    MAGIC, 0x5650
        .set    WORDS, 254
        .set    COM1, 0x3F8
        .set    IDE, 0x1F0
        .globl  _start

_start: cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7C00, %sp
        movw    $hello, %si
        call    print
        call    read
        xorw    %bp, %bp                # boots so far
        movw    $empty, %si
        cmpw    $MAGIC, BUFFER + 2
        jne     next
        movw    BUFFER, %bp
        call    verify
        movw    $found, %si
        call    print
        movw    %bp, %ax
        call    hex
        movw    $end, %si
next:   call    print
        incw    %bp
        call    fill
        call    write
        movw    $BUFFER, %di            # so that what is verified came from the disk
        movw    $256, %cx
        xorw    %ax, %ax
        rep     stosw
        call    read
        call    verify
        movw    $done, %si
        call    print
        movw    %bp, %ax
        call    hex
        movw    $end, %si
        call    print
        xorw    %ax, %ax
halt:   hlt
        jmp     halt

# -- the pattern: word i is the count plus what LOOP has left

fill:   movw    $BUFFER, %di
        movw    %bp, %ax
        stosw
        movw    $MAGIC, %ax
        stosw
        movw    $WORDS, %cx
1:      movw    %bp, %ax
        addw    %cx, %ax
        stosw
        loop    1b
        ret

verify: movw    $BUFFER + 4, %si
        movw    $WORDS, %cx
1:      lodsw
        subw    %cx, %ax
        cmpw    %bp, %ax
        jne     2f
        loop    1b
        ret
2:      movw    $wrong, %si
        call    print
        movw    $1, %ax
        jmp     halt

# -- the disk

read:   movb    $0x20, %al
        call    start
        movw    $BUFFER, %di
        movw    $IDE, %dx
        movw    $256, %cx
        rep     insw
        ret

write:  movb    $0x30, %al
        call    start
        movw    $BUFFER, %si
        movw    $IDE, %dx
        movw    $256, %cx
        rep     outsw
        call    idle
        movw    $IDE + 7, %dx
        movb    $0xE7, %al              # flush
        outb    %al, %dx
        jmp     idle

start:  movb    %al, %bl                # a command for sector 1
        movw    $IDE + 6, %dx
        movb    $0xE0, %al
        outb    %al, %dx
        movw    $IDE + 2, %dx
        movb    $1, %al
        outb    %al, %dx
        incw    %dx
        outb    %al, %dx
        xorb    %al, %al
        incw    %dx
        outb    %al, %dx
        incw    %dx
        outb    %al, %dx
        movw    $IDE + 7, %dx
        movb    %bl, %al
        outb    %al, %dx
idle:   movw    $IDE + 7, %dx
1:      inb     %dx, %al
        testb   $0x80, %al
        jnz     1b
        testb   $0x21, %al
        jz      2f
        movw    $broken, %si
        call    print
        movw    $2, %ax
        jmp     halt
2:      ret

# -- the serial line

print:  lodsb
        testb   %al, %al
        jz      1f
        call    send
        jmp     print
1:      ret

hex:    movw    $4, %cx                 # AX, in four digits
1:      rolw    $4, %ax
        pushw   %ax
        andb    $0x0F, %al
        addb    $0x90, %al
        daa
        adcb    $0x40, %al
        daa
        call    send
        popw    %ax
        loop    1b
        ret

send:   pushw   %ax
        movw    $COM1 + 5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        ret

hello:  .asciz  "boot sector: running in real mode\r\n"
empty:  .asciz  "sector 1: empty\r\n"
found:  .asciz  "sector 1: verified, written by boot "
done:   .asciz  "sector 1: written, flushed and read back by boot "
wrong:  .asciz  "sector 1: WRONG DATA\r\n"
broken: .asciz  "the disk refused\r\n"
end:    .asciz  "\r\n"

        .org    510
        .word   0xAA55
