/** `imagefs create`: makes an image, on its own or over a backing file. Words and output are those of `qemu-img create`. */
import * as fs from 'node:fs';
import { backingPath } from '../../block/info';
import type { BlockNode } from '../../block/node';
import { openImage } from '../../block/open';
import { BlockError } from '../../errors';
import type { CreateOptions, FormatModule } from '../../formats/format';
import { formatByName } from '../../formats/registry';
import { createTableCache } from '../../shared/table-cache';
import type { Storage } from '../../storage/storage';
import { alignUp, MIB, SECTOR_SIZE } from '../../units';
import { parseOptionList, parseWords, sizeArgument } from '../args';
import { type Command, UsageError } from '../command';
import { checkOptions, createOptionsOf, optionsHelp, shownValue } from '../create-options';
import { createImageFile, sameFile } from '../image-file';
import { print, printLine } from '../output';

const HELP = `Usage: imagefs create [-f FMT] [-b BACKING -F FMT] [-u] [-o OPTIONS] [-q] FILE [SIZE]

Makes a disk image. An existing file is overwritten, but never one that is in use.

  -f, --format FMT           qcow2, qcow, qed or raw (default)
  -b, --backing FILE         begin as a copy of this image, which must not change afterwards; a relative name counts from
                             the directory of the new image. SIZE may be left out: it is taken from there
  -F, --backing-format FMT   format of the backing file; needed with -b
  -u, --backing-unsafe       do not open the backing file; SIZE is needed then
  -o, --options a=b,c=d      options of the format, two commas for one in a value; -o help lists them
  -q, --quiet                print nothing
      --debug                show where an error comes from

SIZE is in bytes, or with a suffix k, M, G, T, P, E; rounded up to 512.
Exit code: 0, or 1 when the image was not created.
Examples: imagefs create -f qed -b base.img -F raw vm.qed
          imagefs create -f qcow2 -o cluster_size=128k,preallocation=metadata vm.qcow2 100G
`;

/** For opening a backing file, of which nothing but the size is read. */
const CACHE_BYTES = MIB;

interface Request {
  path: string;
  module: FormatModule;
  /** As the user wrote it, before rounding. */
  size?: number;
  backing?: { name: string; format: string };
  unsafe: boolean;
  /** The rest of what was given with -o. */
  values: Map<string, string>;
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
  if (list.help) {
    print(optionsHelp(module.createOptions ?? []));
    return 0;
  }
  checkOptions(module.createOptions ?? [], list.values);
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
    values: list.values,
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
  if (backing !== undefined && request.unsafe) refuseItself(path, backing.name);
  const backingSize = backing === undefined || request.unsafe ? undefined : sizeOfBacking(path, backing);
  const size = request.size ?? backingSize;
  if (size === undefined) throw new UsageError('Image creation needs a size parameter');

  if (!quiet) printLine(formattingLine(request, size));
  const options: CreateOptions = { ...createOptionsOf(request.values), size: alignUp(size, SECTOR_SIZE) };
  if (backing !== undefined) options.backing = backing;
  const { create } = module;
  const { dataFile } = options;
  createImageFile(path, (storage) => {
    if (dataFile === undefined) create(storage, options);
    else createDataFile(path, dataFile.name, (data) => create(storage, options, data));
  });
}

/** The file counts from the image's directory, where it is looked for when the image is opened. */
function createDataFile(image: string, name: string, fill: (data: Storage) => void): void {
  const path = backingPath(image, name);
  if (sameFile(path, image)) {
    throw new BlockError('BUSY', `Cannot create "${image}": it cannot be its own data file`, { path: image });
  }
  createImageFile(path, fill);
}

/** Nobody opens the backing file then, and its content would be lost without a word. */
function refuseItself(path: string, name: string): void {
  const backing = backingPath(path, name);
  if (!fs.existsSync(backing) || !sameFile(backing, path)) return;
  throw new BlockError('BUSY', `Cannot create "${path}": it has the same filename as the backing file`, { path });
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
function formattingLine({ path, module, backing, values }: Request, size: number): string {
  const given: Record<string, string | undefined> = {
    size: String(size),
    backing_file: backing?.name,
    backing_fmt: backing?.format,
  };
  const words = [`fmt=${module.name}`];
  for (const spec of module.createOptions ?? []) {
    const value = given[spec.name] ?? shownValue(spec, values);
    if (value !== undefined) words.push(`${spec.name}=${doubled(value)}`);
  }
  return `Formatting '${path}', ${words.join(' ')}`;
}

/** A comma in a value of an option list. */
function doubled(value: string): string {
  return value.replaceAll(',', ',,');
}

function sizeOf(argument: string | undefined, options: Map<string, string>): Pick<Request, 'size'> {
  const option = options.get('size');
  if (argument !== undefined && option !== undefined)
    throw new UsageError('The image size must be specified only once');
  const text = argument ?? option;
  return text === undefined ? {} : { size: sizeArgument(text, 'image size') };
}

function backingOf(name: string | undefined, format: string | undefined): Pick<Request, 'backing'> {
  if (name === undefined) {
    if (format !== undefined) throw new UsageError('Backing format cannot be used without backing file');
    return {};
  }
  if (name === '') throw new UsageError('Expected backing file name, got empty string');
  // Never guessed: a guest could turn a raw base into something that is taken for another format.
  if (format === undefined) throw new UsageError('Backing file specified without backing format');
  return { backing: { name, format: formatByName(format).name } };
}

export const command: Command = {
  name: 'create',
  summary: 'Make an image, on its own or over a backing file',
  help: HELP,
  usageExit: 1,
  run,
};
