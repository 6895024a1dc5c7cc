# calls.awk - what the helper's functions call, read or write that is not the header's own
#
# Reads "objdump -drw -j atd_text" of the header alone, compiled with -fdata-sections: then what
# is not in that section has a relocation.
/^[0-9a-f]+ <.*>:$/ {
	fn = substr($2, 2, length($2) - 3)
	sub(/^_ZL[0-9]+/, "", fn)
	seen = seen || fn ~ /^atd_main/
}
fn == "atd_starter" { next }	# a thread of the VMM; it calls by a pointer, maybe through a thunk
/%[fg]s:/ && !/nop/ { print fn ": thread-local storage" }
/R_[A-Z0-9_]+[ \t]/ {
	sym = $NF
	sub(/[-+]0x[0-9a-f]+$/, "", sym)
	if (sym !~ /^(_ZL[0-9]+)?atd_|^\.(rodata|lrodata|l?data\.rel\.ro|L)|^\.(l?bss|data)\.(_ZL[0-9]+)?atd_shared|^(_ZZL.*|header|prefix|prog)[._0-9E]|^__ehdr_start$|^_end$|^__splitstack_find$|^__(start|stop)_atd_text$|^_GLOBAL_OFFSET_TABLE_$/)
		print fn ": " sym
}
END { if (!seen) print "no atd_main in atd_text" }
