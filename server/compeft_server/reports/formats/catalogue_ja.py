"""The report in Japanese: English sentence -> Japanese sentence, with the same named places."""

_MOVED = "のクライアントが送受信した量は{wire}です（圧縮なしの bf16 では{bf16}、{times}の削減）。"
_MONEY = "1 GB あたり{price}の単価では{spent}で、圧縮なしの bf16 より{saved}少ない額です"

JAPANESE = {
    # First paragraph
    "On {first}, {clients} client(s) moved {wire} instead of {bf16} as dense bf16: {times} fewer bytes.": "{first}、{clients}台"
    + _MOVED,
    "From {first} to {last}, {clients} client(s) moved {wire} instead of {bf16} as dense bf16: {times} fewer bytes.": (
        "{first}から{last}まで、{clients}台" + _MOVED
    ),
    "The {metric} is {final} ({source}); base only was not measured.": "{metric}は{final}です（{source}）。基盤モデルのみの値は未測定です。",
    "The {metric} rose from {base} to {final} ({source}).": "{metric}は{base}から{final}に上がりました（{source}）。",
    "The {metric} fell from {base} to {final} ({source}).": "{metric}は{base}から{final}に下がりました（{source}）。",
    "The {metric} went from {base} to {final} ({source}).": "{metric}は{base}から{final}で、変わりません（{source}）。",
    "Uncompressed was not measured.": "圧縮なしの場合の値は未測定です。",
    "Uncompressed it is {other}: a difference of {change}.": "圧縮なしの場合は{other}で、差は{change}です。",
    "At your price of {price} a GB that is {spent}, {saved} less than dense bf16; {thousand} less per 1,000 rounds.": (
        _MONEY + "（1,000 ラウンドあたり{thousand}の節約）。"
    ),
    "At your price of {price} a GB that is {spent}, {saved} less than dense bf16.": _MONEY + "。",
    # Who says so, and why nothing is said
    "reported by {name}, not measured": "{name}による申告値、未測定",
    "measured by {clients} client(s)": "{clients}台のクライアントで測定",
    "No transfer of an edge client was recorded yet, so no saving is stated.": "クライアントの送受信がまだ記録されていないため、削減量は示しません。",
    "The wire was not counted on this aggregator (it needs Linux), so no saving is stated.": (
        "この集約サーバーでは通信量が計測されていないため（Linux が必要です）、削減量は示しません。"
    ),
    "No quality was reported for any version of this expert, so no saving is stated: bytes alone say nothing.": (
        "このエキスパートのどの版にも品質の報告がないため、削減量は示しません。バイト数だけでは判断できません。"
    ),
    "No client has fetched a version of known quality, so no saving is stated.": (
        "品質のわかっている版を取得したクライアントがないため、削減量は示しません。"
    ),
    # Head
    "ComPEFT bandwidth report": "ComPEFT 通信量レポート",
    "bandwidth report": "通信量レポート",
    "{parameters} parameters": "パラメーター {parameters} 個",
    "{clients} client(s)": "クライアント {clients} 台",
    "{rounds} round(s)": "{rounds} ラウンド",
    "{refused} refused": "拒否 {refused} 件",
    "{seconds} in all": "全体で {seconds}",
    "since {since}": "{since} 以降",
    # Figures
    "Fewer bytes than dense fp32": "圧縮なし fp32 に対する削減",
    "{times} than dense bf16": "圧縮なし bf16 に対して {times}",
    "{times} than the dense run": "圧縮なしの実行に対して {times}",
    "at {metric} {score}, version {version}": "{metric} {score}、版 {version}",
    "at {metric} {score}": "{metric} {score}",
    "of {wire} that led to it": "その版に至る {wire} について",
    "at version {version}, {source}": "版 {version}、{source}",
    "not reported": "報告なし",
    "base only {score}": "基盤モデルのみ {score}",
    "dense run {score}": "圧縮なしの実行 {score}",
    "On the wire": "実際の通信量",
    "not counted": "計測なし",
    "{wire} to the aggregator": "集約サーバーへ {wire}",
    "{wire} from it": "集約サーバーから {wire}",
    "dense fp32 {value}": "圧縮なし fp32 では {value}",
    "One client at {link}": "クライアント 1 台、{link} の回線",
    "of transfer for all rounds": "全ラウンドの転送時間",
    # Sections
    "{metric} against bytes on the wire": "通信量に対する{metric}",
    "Versions": "版",
    "Transfer time of one client": "クライアント 1 台の転送時間",
    "The bytes that led to version {version}, at {metric} {score}; bytes over rate, without latency.": (
        "版 {version} に至る通信量（{metric} {score}）。バイト数を回線速度で割った値で、遅延は含みません。"
    ),
    "measured upload rate, {rate} Mbit/s": "測定した送信速度 {rate} Mbit/s",
    "What other ways would have moved": "ほかの方式の場合の通信量",
    "Effect on {metric}": "{metric}への影響",
    "Business metrics": "業務指標",
    "{name}: {newest}; goal {goal}, baseline {baseline}. Marks under the axis are versions; bars below are their bytes on "
    "the wire, over what dense bf16 would have moved.": (
        "{name}：{newest}、目標 {goal}、導入前 {baseline}。軸の下の印は版、下の棒は各版の実際の通信量（背景は圧縮なしの bf16 の場合）です。"
    ),
    "Energy": "エネルギー",
    "energy, {factor} kWh a GB (given by the operator)": "電力、1 GB あたり {factor} kWh（運用者の指定値）",
    "CO2, {factor} g a kWh (given by the operator)": "CO2、1 kWh あたり {factor} g（運用者の指定値）",
    "Money": "費用",
    "At other densities": "ほかの密度の場合",
    "GPU use": "GPU の利用",
    "Clients": "クライアント",
    "Refused": "拒否",
    "How each figure was computed": "各数値の計算方法",
    # Columns and rows
    "dense": "圧縮なし",
    "payload": "符号化データ",
    "wire": "通信量",
    "fewer than": "削減",
    "version": "版",
    "over clients": "クライアント間",
    "fp32": "fp32",
    "bf16": "bf16",
    "up": "送信",
    "down": "受信",
    "clients": "台数",
    "refused": "拒否",
    "merge": "統合",
    "base only": "基盤モデルのみ",
    "{first} to {last}": "{first} ～ {last}",
    "{version} (open)": "{version}（進行中）",
    "up to {version}": "{version} まで",
    "version {version}": "版 {version}",
    "total": "合計",
    "link": "回線",
    "dense fp32": "圧縮なし fp32",
    "dense bf16": "圧縮なし bf16",
    "way": "方式",
    "bytes": "バイト数",
    "bits a parameter": "1 パラメーターのビット数",
    "how": "計算方法",
    "this run, payload": "今回の符号化データ",
    "Of FlowerTune's budget of 200,000 MB a run: {tracker} % by its tracker's counting, {counted} % by the payload counted here.": (
        "FlowerTune の1実行あたりの通信予算 200,000 MB のうち、同トラッカーの数え方で {tracker} %、ここで計測したペイロードで {counted} %。"
    ),
    "counted; {quality}": "計測値。{quality}",
    "standard deviation": "標準偏差",
    "base only, zero bytes": "基盤モデルのみ（通信なし）",
    "uncompressed": "圧縮なし",
    "uncompressed, each client's own update": "圧縮なし（各クライアント自身の更新）",
    "Each client's own update, uncompressed, has {other} on its rows: a difference of {change}.": (
        "各クライアント自身の更新を圧縮しない場合、そのクライアントのデータで{other}で、差は{change}です。"
    ),
    "compressed": "圧縮あり",
    "unknown": "不明",
    "not measured": "未測定",
    "run {run}, version {version}": "実行 {run}、版 {version}",
    "over {runs} runs": "{runs} 回の実行",
    "No price was given: --price-per-gb 0.08 --currency EUR.": "単価の指定がありません（--price-per-gb 12 --currency JPY）。",
    "density": "密度",
    "one update": "更新 1 件",
    "fewer than bf16": "bf16 に対する削減",
    "all uploads here would be": "全送信の合計",
    "Not computed.": "計算していません。",
    "{score}, measured (in use, {used})": "{score}、測定値（使用中、{used}）",
    "{score}, {source} (in use, {used})": "{score}、{source}（使用中、{used}）",
    "unknown (in use, {used})": "不明（使用中、{used}）",
    "unknown: not measured at this density": "不明（この密度では未測定）",
    "up and down": "送信と受信",
    "as pushed": "公開時のまま",
    "measured on {device}": "{device} で測定",
    "packed": "圧縮あり",
    "bfloat16": "bfloat16",
    "experts in a GB of memory": "メモリー 1 GB あたりのエキスパート数",
    "time to switch": "切り替え時間",
    "No pool has reported: compeft_client.reporting does. Or measure one: compeft bench pool -o pool.json, then --pool pool.json.": (
        "プールからの報告がありません（compeft_client.reporting が送信します）。または compeft bench pool -o pool.json で測定し、"
        "--pool pool.json を指定してください。"
    ),
    "Counted by each pool since it began; its newest report.": "各プールが開始以降に数えた値で、最新の報告によります。",
    "member": "メンバー",
    "device": "装置",
    "experts in memory": "メモリー上のエキスパート",
    "as bfloat16": "bfloat16 の場合",
    "switches": "切り替え回数",
    "without a file": "ファイル読み込みなし",
    "decoding": "復号",
    "device memory": "装置メモリー",
    "Training, as {updates} update(s) state: {seconds} on average without a GPU, at most {host} of the process.": (
        "学習：更新 {updates} 件の申告によると、GPU なしで平均 {seconds}、プロセスは最大 {host}です。"
    ),
    "Training, as {updates} update(s) state: {seconds} on average, at most {gpu} on the GPU and {host} of the process.": (
        "学習：更新 {updates} 件の申告によると、平均 {seconds}、GPU は最大 {gpu}、プロセスは最大 {host}です。"
    ),
    "client": "クライアント",
    "first": "最初",
    "last": "最新",
    "in calls": "通信時間",
    "No edge client has moved or measured anything yet.": "送受信または測定をしたクライアントはまだありません。",
    "the newest {shown} of {all}": "全 {all} 件のうち新しい {shown} 件",
    "when": "日時",
    "peer": "接続元",
    "code": "コード",
    "reason": "理由",
    "Nothing was refused.": "拒否はありません。",
    "gain kept": "維持した向上",
    "{share} %: (composed - base) / (dense - base). Stated only where the dense run gained at least one point.": (
        "{share} %：（圧縮あり − 基盤）/（圧縮なし − 基盤）。圧縮なしの実行が 1 ポイント以上向上した場合だけ示します。"
    ),
    "dense run": "圧縮なしの実行",
    "{clients} client(s), {rounds} round(s), {size} of parameters, {wire} counted, {seconds}. Counted by: {counted}.": (
        "クライアント {clients} 台、{rounds} ラウンド、パラメーター {size}、計測 {wire}、{seconds}。計測方法：{counted}。"
    ),
    "operators": "運用者",
    "{wire} moved with conductors and readers; not in any other figure.": "進行役と閲覧者との通信 {wire}。ほかの数値には含みません。",
    # The picture
    "composed expert, a point per version": "圧縮ありのエキスパート（点は版ごと）",
    "dense run, a point per round": "圧縮なしの実行（点はラウンドごと）",
    "{metric} of {name} against cumulative wire bytes": "{name} の{metric}と累積通信量",
    "Wire bytes so far, all clients": "累積通信量（全クライアント）",
    "Cumulative wire bytes of all clients, both directions (log scale)": "全クライアントの累積通信量、送受信の合計（対数目盛）",
    "No picture yet: it takes a version with a reported metric and counted bytes.": "図はまだありません。品質と通信量のわかる版が必要です。",
    "The composed expert reaches {metric} {value} after {wire} on the wire.": "圧縮ありのエキスパートは通信量 {wire} で{metric} {value} です。",
    "The base model alone, with zero bytes, has {value}.": "基盤モデルのみ（通信なし）では {value} です。",
    "The dense run reaches {value} after {wire}.": "圧縮なしの実行は {wire} で {value} です。",
    # Other ways
    (
        "Computed, not measured: the parameters that were moved here, times the bits that each way needs for one. Without framing; the task "
        "metric that the other ways would have reached is unknown."
    ): "測定ではなく計算値です。実際に送受信したパラメーター数に、各方式の 1 個あたりのビット数を掛けました。枠組みの分は含まず、その方式での品質は不明です。",
    "4 bytes a parameter": "1 個あたり 4 バイト",
    "its tracker's rule: the float32 arrays of both directions, without framing": "同ツールの数え方：両方向の float32 配列、枠組みなし",
    "2 bytes a parameter": "1 個あたり 2 バイト",
    "1 byte a parameter and 4 bytes a block of 4,096": "1 個あたり 1 バイトと、4,096 個ごとに 4 バイト",
    "4 bits a parameter and 4 bytes a block of 64": "1 個あたり 4 ビットと、64 個ごとに 4 バイト",
    "1.56 % kept, 2 bits a value and 12 bits a position, both directions": "1.56 % を送り、値 2 ビットと位置 12 ビット、両方向",
    "0.25 % kept, 1 sign and a Golomb-coded position each, both directions": "0.25 % を送り、符号 1 ビットと Golomb 符号の位置、両方向",
    # How each figure was computed
    "fewer bytes": "削減",
    "quality": "品質",
    "transfer time": "転送時間",
    "version rows": "版の行",
    "spread": "ばらつき",
    "money": "費用",
    "other densities": "ほかの密度",
    (
        "bytes that the kernel counted on the aggregator's TCP sockets: TLS, HTTP/2 and gRPC framing in, TCP/IP headers not. Calls that were "
        "refused or cut off count too."
    ): "集約サーバーの TCP ソケットでカーネルが数えたバイト数です。TLS、HTTP/2、gRPC を含み、TCP/IP ヘッダーは含みません。拒否や中断も含みます。",
    "the encoded parameters alone.": "符号化したパラメーターだけのバイト数です。",
    "what the same transfers would carry uncompressed: parameters × 4 bytes (fp32) or × 2 (bf16) a transfer, unframed.": (
        "同じ転送を圧縮なしで行う場合の量です。1 転送あたりパラメーター数 × 4 バイト（fp32）または × 2 バイト（bf16）。"
    ),
    "dense / wire of the bytes that led to a version of known quality: of a composed expert all up to it, of a package its own.": (
        "品質のわかっている版に至る通信について、圧縮なしの量を通信量で割った値です。合成エキスパートではその版までの全通信、パッケージではその版の通信です。"
    ),
    (
        "mean over clients, each on its own test rows, weighted by their number, at the newest version that was measured; "
        "of a package what its publisher reported, which nobody here has measured."
    ): "最新の測定版について、各クライアントが自分の評価データで測った値の加重平均です。パッケージでは公開者の申告値で、ここでは測定していません。",
    (
        "an average client's bytes over the link's rate, without latency. The measured rate is that of uploads between one message and the "
        "next, so waiting is not in it; uploads of one message (256 KiB) have none."
    ): "平均的なクライアントのバイト数を回線速度で割った値で、遅延は含みません。測定速度は送信中のメッセージの間隔から求め、待ち時間を含みません。",
    (
        "up: the uploads that were made for this version; down: the deliveries of it. (open): its round has not closed. The rows add up to "
        "the total."
    ): "送信はその版のための送信、受信はその版の配布です。進行中はラウンドが終わっていない版です。各行の和は合計に一致します。",
    "over clients: lowest, highest and standard deviation at the newest measured version; over runs: each at its newest version.": (
        "クライアント間：最新の測定版での最小、最大、標準偏差です。実行間：各実行の最新版です。"
    ),
    "submissions and syncs that were turned away since the round of the version opened.": "その版のラウンドが始まってから拒否した送受信の件数です。",
    "bytes times the price that was given, or the tariff of the site's link; a GB is 10^9 bytes. Sums under 0.01 are stated per "
    "1,000 rounds. Tenants are labels of members.": (
        "指定の単価（拠点の回線に料金があればその料金）にバイト数を掛けた値です。1 GB は 10^9 バイトです。0.01 未満の額は 1,000 ラウンドあたりで示します。"
        "テナントはメンバーのラベルです。"
    ),
    "{amount} per 1,000 rounds": "1,000 ラウンドあたり {amount}",
    "all clients": "全クライアント",
    "tenant {name}, {sites} site(s)": "テナント {name}、拠点 {sites} か所",
    "a GB": "1 GB あたり",
    "cost as dense bf16": "圧縮なし bf16 の場合の費用",
    "cost of the wire": "実際の費用",
    "a real encoding of this layout by codec rice, at positions without a pattern; codec context needs a sixth to a tenth less.": (
        "このレイアウトを符号器 rice で実際に符号化した量です（位置に偏りなし）。符号器 context ではさらに 6 分の 1 から 10 分の 1 少なくなります。"
    ),
    "counted by the members' own pools since each began, and told to the aggregator; or what compeft bench pool measured on the "
    "device that it names. Training: metrics of the newest signed updates. Never derived from bytes.": (
        "メンバー自身のプールが開始以降に数えて集約サーバーに報告した値、または compeft bench pool が記載の装置で測定した値です。"
        "学習は最新の署名付き更新の指標です。バイト数からの計算ではありません。"
    ),
}
