/** `imagefs create`: makes an image, on its own or over a backing file. Words and output are those of `qemu-img create`. */
import { backingPath } from '../../block/info';
import type { BlockNode } from '../../block/node';
import { openImage } from '../../block/open';
import { BlockError } from '../../errors';
import type { CreateOptions, FormatModule } from '../../formats/format';
import { formatByName } from '../../formats/registry';
import { createTableCache } from '../../shared/table-cache';
import { alignUp, KIB, MIB, SECTOR_SIZE } from '../../units';
import { parseOptionList, parseWords, sizeArgument } from '../args';
import { type Command, UsageError } from '../command';
import { createImageFile, sameFile } from '../image-file';
import { print, printLine } from '../output';

const HELP = `Usage: imagefs create [-f FMT] [-b BACKING -F FMT] [-u] [-o OPTIONS] [-q] FILE [SIZE]

Makes a disk image. An existing file is overwritten, but never one that is in use.

  -f, --format FMT           qed or raw (default)
  -b, --backing FILE         begin as a copy of this image, which must not change afterwards; a relative name counts from
                             the directory of the new image. SIZE may be left out: it is taken from there
  -F, --backing-format FMT   format of the backing file; needed with -b
  -u, --backing-unsafe       do not open the backing file; SIZE is needed then
  -o, --options a=b,c=d      options of the format, two commas for one in a value; -o help lists them
  -q, --quiet                print nothing
      --debug                show where an error comes from

SIZE is in bytes, or with a suffix k, M, G, T, P, E; rounded up to 512.
Exit code: 0, or 1 when the image was not created.
Example: imagefs create -f qed -b base.img -F raw vm.qed
`;

/** For opening a backing file, of which nothing but the size is read. */
const CACHE_BYTES = MIB;

const OPTION_HELP: Record<string, string> = {
  backing_file: 'backing_file=<str>     - File name of a base image',
  backing_fmt: 'backing_fmt=<str>      - Image format of the base image',
  cluster_size: 'cluster_size=<size>    - Cluster size (in bytes)',
  preallocation: 'preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)',
  size: 'size=<size>            - Virtual disk size',
  table_size: 'table_size=<size>      - L1/L2 table size (in clusters)',
};

/** Of the formats that have clusters, as far as it is printed. */
const DEFAULT_CLUSTER_SIZE = 64 * KIB;

interface Request {
  path: string;
  module: FormatModule;
  /** As the user wrote it, before rounding. */
  size?: number;
  backing?: { name: string; format: string };
  unsafe: boolean;
  clusterSize?: number;
  tableSize?: number;
  preallocation?: 'off' | 'falloc' | 'full';
}

function run(args: string[]): number {
  const { values, positionals } = parseWords(args, {
    format: { type: 'string', short: 'f' },
    backing: { type: 'string', short: 'b' },
    'backing-format': { type: 'string', short: 'F' },
    'backing-unsafe': { type: 'boolean', short: 'u' },
    options: { type: 'string', short: 'o', multiple: true },
    quiet: { type: 'boolean', short: 'q' },
    debug: { type: 'boolean' },
  });
  const module = formatByName(values.format ?? 'raw');
  const list = parseOptionList(values.options ?? []);
  const known = knownOptions(module);
  if (list.help) {
    print(`Supported options:\n${known.map((name) => `  ${OPTION_HELP[name]}\n`).join('')}`);
    return 0;
  }
  for (const name of list.values.keys()) {
    if (!known.includes(name)) throw new UsageError(`Invalid parameter '${name}'`);
  }
  const [path, size, unexpected] = positionals;
  if (path === undefined) throw new UsageError('Expecting image file name');
  if (unexpected !== undefined) throw new UsageError(`Unexpected argument: ${unexpected}`);
  const request: Request = {
    path,
    module,
    unsafe: values['backing-unsafe'] ?? false,
    ...sizeOf(size, list.values),
    ...backingOf(
      values.backing ?? list.values.get('backing_file'),
      values['backing-format'] ?? list.values.get('backing_fmt'),
    ),
    ...geometryOf(list.values),
  };
  createImage(request, values.quiet ?? false);
  return 0;
}

function createImage(request: Request, quiet: boolean): void {
  const { path, module, backing } = request;
  if (module.create === undefined) {
    throw new BlockError(
      'UNSUPPORTED_FEATURE',
      `Cannot create "${path}": images of format ${module.name} cannot be created`,
    );
  }
  if (backing !== undefined && !module.capabilities.backing) {
    throw new BlockError(
      'UNSUPPORTED_FEATURE',
      `Cannot create "${path}": backing file not supported for file format '${module.name}'`,
    );
  }
  const backingSize = backing === undefined || request.unsafe ? undefined : sizeOfBacking(path, backing);
  const size = request.size ?? backingSize;
  if (size === undefined) throw new UsageError('Image creation needs a size parameter');

  if (!quiet) printLine(formattingLine(request, size));
  const options: CreateOptions = { size: alignUp(size, SECTOR_SIZE) };
  if (backing !== undefined) options.backing = backing;
  if (request.clusterSize !== undefined) options.clusterSize = request.clusterSize;
  if (request.tableSize !== undefined) options.tableSize = request.tableSize;
  if (request.preallocation !== undefined) options.preallocation = request.preallocation;
  const { create } = module;
  createImageFile(path, (storage) => create(storage, options));
}

/** Opens the backing file with its whole chain: what cannot be opened cannot back an image. */
function sizeOfBacking(path: string, backing: { name: string; format: string }): number {
  const image = openImage(backingPath(path, backing.name), {
    readOnly: true,
    format: backing.format,
    backing: 'any', // Named by the user, and only its size is taken.
    threads: 1,
    cache: createTableCache(CACHE_BYTES),
    imageId: 0,
    lock: true,
  });
  try {
    for (let layer: BlockNode | undefined = image.node; layer !== undefined; layer = layer.backing) {
      if (!sameFile(layer.path, path)) continue;
      throw new BlockError('BUSY', `Cannot create "${path}": it is part of the backing chain that was asked for`, {
        path,
      });
    }
    return image.node.size();
  } finally {
    image.close();
  }
}

/** What qemu-img prints before it starts. */
function formattingLine(request: Request, size: number): string {
  const { path, module, backing, clusterSize, tableSize, preallocation } = request;
  const words = [`fmt=${module.name}`, `size=${size}`];
  if (backing !== undefined) words.push(`backing_file=${doubled(backing.name)}`, `backing_fmt=${backing.format}`);
  if (module.capabilities.clusters) words.push(`cluster_size=${clusterSize ?? DEFAULT_CLUSTER_SIZE}`);
  if (tableSize !== undefined) words.push(`table_size=${tableSize}`);
  if (preallocation !== undefined) words.push(`preallocation=${preallocation}`);
  return `Formatting '${path}', ${words.join(' ')}`;
}

/** A comma in a value of an option list. */
function doubled(value: string): string {
  return value.replaceAll(',', ',,');
}

function knownOptions(module: FormatModule): string[] {
  const { backing, clusters } = module.capabilities;
  return [
    ...(backing ? ['backing_file', 'backing_fmt'] : []),
    ...(clusters ? ['cluster_size'] : []),
    'preallocation',
    'size',
    ...(clusters ? ['table_size'] : []),
  ];
}

function sizeOf(argument: string | undefined, options: Map<string, string>): Pick<Request, 'size'> {
  const option = options.get('size');
  if (argument !== undefined && option !== undefined)
    throw new UsageError('The image size must be specified only once');
  const text = argument ?? option;
  return text === undefined ? {} : { size: sizeArgument(text, 'image size') };
}

function backingOf(name: string | undefined, format: string | undefined): Pick<Request, 'backing'> {
  if (name === undefined) return {};
  if (name === '') throw new UsageError('Expected backing file name, got empty string');
  // Never guessed: a guest could turn a raw base into something that is taken for another format.
  if (format === undefined) throw new UsageError('Backing file specified without backing format');
  return { backing: { name, format: formatByName(format).name } };
}

function geometryOf(options: Map<string, string>): Pick<Request, 'clusterSize' | 'tableSize' | 'preallocation'> {
  const result: Pick<Request, 'clusterSize' | 'tableSize' | 'preallocation'> = {};
  const clusterSize = options.get('cluster_size');
  if (clusterSize !== undefined) result.clusterSize = sizeArgument(clusterSize, 'cluster size');
  const tableSize = options.get('table_size');
  if (tableSize !== undefined) result.tableSize = sizeArgument(tableSize, 'table size');
  const preallocation = options.get('preallocation');
  if (preallocation === undefined) return result;
  if (preallocation !== 'off' && preallocation !== 'falloc' && preallocation !== 'full') {
    throw new UsageError(`Unsupported preallocation mode: ${preallocation}`);
  }
  return { ...result, preallocation };
}

export const command: Command = {
  name: 'create',
  summary: 'Make an image, on its own or over a backing file',
  help: HELP,
  usageExit: 1,
  run,
};
