/** `imagefs map`: which part of the disk lies where in which file of the backing chain, as `qemu-img map` says it. */
import { backingPath } from '../../block/info';
import { type MapEntry, mapEntries } from '../../block/map-entries';
import type { BlockNode } from '../../block/node';
import { imageHeaderOf, openImage } from '../../block/open';
import { BlockError } from '../../errors';
import { createTableCache } from '../../shared/table-cache';
import { MIB } from '../../units';
import { backingArgument, outputFormat, parseWords, sizeArgument } from '../args';
import { type Command, UsageError } from '../command';
import { onlyFile } from '../image-file';
import { print, printLine } from '../output';

const HELP = `Usage: imagefs map [-f FMT] [--output=human|json] [--start-offset=N] [--max-length=N] [--backing WHERE] [-U] FILE

Shows which parts of the disk hold data, and in which file of the backing chain at which offset.

  -f, --format FMT        format of the image: qcow2, qcow, qed or raw (default: recognised by its first bytes)
      --output FORMAT     human (default): what holds data; or json: everything, with the fields of qemu-img
  -s, --start-offset N    begin at this offset of the disk (default 0); suffixes k, M, G, T, P, E
  -l, --max-length N      show this many bytes at most
      --backing WHERE     directory (default): a raw backing file must lie in the directory of the image that names it;
                          any: wherever it says
  -U, --force-share       read although somebody writes to the image; what is shown may be inconsistent
      --debug             show where an error comes from

Exit code: 0, or 1 when an image cannot be opened or read, or the words are wrong.
Example: imagefs map --output=json --max-length=1M vm.qed
`;

/** Enough for the tables of one place at a time: a map reads each once, in order. */
const CACHE_BYTES = 4 * MIB;

function run(args: string[]): number {
  const { values, positionals } = parseWords(args, {
    format: { type: 'string', short: 'f' },
    output: { type: 'string' },
    'start-offset': { type: 'string', short: 's' },
    'max-length': { type: 'string', short: 'l' },
    backing: { type: 'string' },
    'force-share': { type: 'boolean', short: 'U' },
    'image-opts': { type: 'boolean' },
    debug: { type: 'boolean' },
  });
  if (values['image-opts'])
    throw new UsageError('--image-opts is not supported: name the file, and its format with -f');
  const output = outputFormat(values.output);
  const start = sizeArgument(values['start-offset'] ?? '0', 'start offset');
  const maxLength = values['max-length'] === undefined ? undefined : sizeArgument(values['max-length'], 'max length');
  const path = onlyFile(positionals);

  const image = openImage(path, {
    readOnly: true,
    backing: backingArgument(values.backing),
    threads: 1,
    cache: createTableCache(CACHE_BYTES),
    imageId: 0,
    lock: true,
    ...(values.format === undefined ? {} : { format: values.format }),
    ...(values['force-share'] ? { forceShare: true } : {}),
  });
  try {
    const length = Math.max(0, Math.min(maxLength ?? image.node.size(), image.node.size() - start));
    const entries = mapEntries(image.node, { start, length });
    if (output === 'json') printJson(entries, start);
    else printTable(entries, image.node);
  } finally {
    image.close();
  }
  return 0;
}

/** qemu-img's own layout: one entry a line. */
function printJson(entries: Iterable<MapEntry>, start: number): void {
  let separator = '[';
  for (const entry of entries) {
    const fields = Object.entries(entry).map(([name, value]) => `"${name}": ${value}`);
    print(`${separator}{ ${fields.join(', ')}}`);
    separator = ',\n';
  }
  // Nothing in the range: one entry of length 0, as qemu-img has it.
  if (separator === '[')
    print(`[{ "start": ${start}, "length": 0, "depth": 0, "present": false, "zero": false, "data": false}`);
  printLine(']');
}

function printTable(entries: Iterable<MapEntry>, top: BlockNode): void {
  const row = (a: string, b: string, c: string, d: string) => printLine(a.padEnd(16) + b.padEnd(16) + c.padEnd(16) + d);
  row('Offset', 'Length', 'Mapped to', 'File');
  for (const entry of entries) {
    if (!entry.data || entry.zero) continue;
    const path = dataPathOf(layerAt(top, entry.depth));
    if (entry.offset === undefined) {
      throw new BlockError('UNSUPPORTED_FEATURE', 'File contains external, encrypted or compressed clusters', { path });
    }
    row(cHex(entry.start), cHex(entry.length), cHex(entry.offset), path);
  }
}

function layerAt(top: BlockNode, depth: number): BlockNode {
  let node = top;
  for (let down = 0; down < depth && node.backing !== undefined; down++) node = node.backing;
  return node;
}

/** The file that holds the layer's data: the image itself, or its external data file. */
function dataPathOf(layer: BlockNode): string {
  const { dataFile } = imageHeaderOf(layer);
  return dataFile === undefined ? layer.path : backingPath(layer.path, dataFile.name);
}

/** C's `%#llx`: 0 has no prefix. */
function cHex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}

export const command: Command = {
  name: 'map',
  summary: 'Show which part of the disk lies where',
  help: HELP,
  usageExit: 1,
  run,
};
