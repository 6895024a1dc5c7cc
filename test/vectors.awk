# vectors.awk - in a compiler's assembly, finds what reads a vector register that a system
# call has destroyed since it was written: of RISC-V's V v0 to v31 and vtype, of aarch64's
# SVE p0 to p15, and z0 to z31 as a whole, but not as v0 to v31.
#
# Follows every branch until nothing changes.  Exits with 1 if no vector register is used.

function registers(s,    list, word, i) {
	gsub(/\.[a-z0-9]+/, "", s)
	gsub(/[^a-z0-9_]/, " ", s)
	list = ""
	for (i = split(s, word, " "); i > 0; i--)
		if (word[i] ~ /^[vzpqdshb][0-9]+$/ || word[i] == "vtype") list = list " " word[i]
	return list
}
function written(name,    kind, i, last) {
	kind = substr(name, 1, 1)
	i = last = substr(name, 2) + 0
	if (name == "vtype") delete stale[name]
	else if (kind == "v" && op[n] ~ /^v/) {	# as many as there may be in one group
		last += op[n] ~ /seg/ || i % 8 == 0 ? 7 : i % 4 == 0 ? 3 : i % 2 == 0
		for (; i <= last; i++) delete stale["v" i]
	} else if (kind == "p") delete stale[name]
	else {
		if (op[n] ~ /^ld[234]/) last += 3
		for (; i <= last; i++) delete stale["z" i % 32]
	}
}
function meet(where,    r) {	# what is stale there, is so on one of the ways to it
	for (r in stale)
		if (!((where, r) in at)) { at[where, r] = 1; changed = 1 }
}
function walk(report,    i, k, r, list) {
	for (n = 1; n <= total; n++)
		if (n in label) {
			if (label[n] ~ /^[A-Za-z_]/) { split("", stale); name = label[n] }
			meet(label[n])
			for (r in all) if ((label[n], r) in at) stale[r] = 1
		} else {
			k = split(reads[n], list, " ")
			for (i = 1; i <= k; i++)
				if (report && list[i] in stale) { print name ": " text[n] ": " list[i]; break }
			k = split(writes[n], list, " ")
			for (i = 1; i <= k; i++) written(list[i])
			if (op[n] == "ecall") for (r in all) if (r ~ /^v/) stale[r] = 1
			if (op[n] == "svc") for (r in all) if (r !~ /^v/) stale[r] = 1
			if (op[n] ~ /^(b(eq|ne|lt|le|gt|ge)u?z?|b\..*|[ct]bn?z|j|b)$/) meet(to[n])
			if (op[n] ~ /^(j|b|jr|br.*|ret.*|tail|udf|unimp|ebreak)$/) split("", stale)
		}
}
/^[ \t]*(#|\/\/|$)/ { next }
{ sub(/[ \t]+(#|\/\/)[ \t].*/, "") }
/^[ \t]*[^ \t"]+:$/ {
	gsub(/[ \t:]/, "")
	label[++total] = /^[0-9]+$/ ? $0 "/" ++seen[$0] : $0	# "1f" is the next "1:"
	next
}
/^[ \t]*\./ { next }
{
	gsub(/[ \t]+/, " ")
	sub(/^ /, "")
	text[++total] = $0
	op[total] = mnemonic = $1
	sub(/^[^ ]* ?/, "")
	to[total] = $0
	sub(/.*, ?/, "", to[total])
	if (to[total] ~ /^[0-9]+f$/) { sub(/f/, "", to[total]); to[total] = to[total] "/" seen[to[total]] + 1 }
	first = $0	# or what is between braces, or both of a pair
	if (!sub(/}.*/, "", first)) {
		if (mnemonic ~ /^ldn?p/) sub(/,[^,]*\[.*/, "", first)
		else sub(/,.*/, "", first)
	}
	rest = substr($0, length(first) + 1)
	if (mnemonic ~ /^vset/) {
		writes[total] = "vtype"
		reads[total] = /^(zero|x0), ?(zero|x0),/ ? "vtype" : ""	# the length stays
	} else if (mnemonic ~ /^(st|ptest|wrffr|vs([0-9e]|se|[uo]x|m\.v|s?seg))/ && mnemonic !~ /^vsext/)
		reads[total] = registers($0)
	else {
		writes[total] = registers(first)
		reads[total] = registers(rest)
	}
	if (mnemonic ~ /^v/ && mnemonic !~ /^v(set|[ls][1248]r)/) reads[total] = reads[total] " vtype"
	if (mnemonic ~ /^(ecall|svc)$/) calls = 1
	if (mnemonic ~ /^v/ || reads[total] writes[total] ~ /[zp][0-9]/) used = 1
}
END {
	all["vtype"] = 1
	for (i = 0; i < 32; i++) all["v" i] = all["z" i] = 1
	for (i = 0; i < 16; i++) all["p" i] = 1
	do { changed = 0; walk(0) } while (changed)
	walk(1)
	if (!calls) print "no system call"
	exit !used
}
