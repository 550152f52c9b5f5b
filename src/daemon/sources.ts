/** Which image files a mount is made of: files as named, and the images that lie in named directories. */
import fs from 'node:fs';
import path from 'node:path';
import { BlockError, hostError } from '../errors';
import { formatNameOf } from '../formats/registry';
import type { ImageSource } from './config';

/** Bytes that a format is recognised by. */
const PROBE_BYTES = 512;

/** What a file in a directory is taken for by its name. Names of formats are forced, so that damage shows as an error, not as a raw disk. */
const FORMAT_BY_EXTENSION: Record<string, string | undefined> = {
  '.qed': 'qed',
  '.qcow2': 'qcow2',
  '.qcow': 'qcow',
  '.vmdk': 'vmdk',
  '.vdi': 'vdi',
  '.vhd': 'vpc',
  '.vhdx': 'vhdx',
};
const RAW_EXTENSIONS = new Set(['.img', '.raw', '.iso', '.dd']);

export interface CollectedSources {
  sources: ImageSource[];
  /** One image was named as a file. */
  single: boolean;
}

/** Throws one line for whatever cannot be read; a directory without images is refused too. */
export function collectSources(named: string[], format: string | undefined): CollectedSources {
  const sources = named.flatMap((name): ImageSource[] => {
    const stat = statImage(name);
    if (stat.isDirectory()) return imagesIn(name, format);
    if (!stat.isFile() && !stat.isBlockDevice()) {
      throw new BlockError('INVALID_FORMAT', `Cannot open "${name}": it is neither a regular file nor a block device`, {
        path: name,
      });
    }
    return [withFormat(path.resolve(name), format)];
  });
  return { sources, single: named.length === 1 && sources.length === 1 && !statImage(named[0] ?? '').isDirectory() };
}

function statImage(name: string): fs.Stats {
  try {
    const stat = fs.statSync(name);
    fs.accessSync(name, fs.constants.R_OK);
    return stat;
  } catch (error) {
    throw hostError(error, `Cannot open "${name}"`, { path: name });
  }
}

/** The images directly in a directory, sorted by name. Hidden files are left out. */
function imagesIn(directory: string, format: string | undefined): ImageSource[] {
  const sources = fs
    .readdirSync(directory)
    .filter((name) => !name.startsWith('.'))
    .sort()
    .flatMap((name): ImageSource[] => {
      const file = path.resolve(directory, name);
      if (!isFile(file)) return [];
      const extension = path.extname(name).toLowerCase();
      const byName = FORMAT_BY_EXTENSION[extension];
      if (byName !== undefined) return [withFormat(file, format ?? byName)];
      return RAW_EXTENSIONS.has(extension) || looksLikeImage(file) ? [withFormat(file, format)] : [];
    });
  if (sources.length === 0) {
    throw new BlockError('NOT_FOUND', `Cannot mount the directory "${directory}": there is no image in it`, {
      path: directory,
    });
  }
  return sources;
}

function isFile(file: string): boolean {
  try {
    return fs.statSync(file).isFile();
  } catch {
    // A dangling link, or gone since it was listed: no image.
    return false;
  }
}

/** Does the file begin like a format that we know? One that cannot be read is taken for an image: its folder then says why. */
function looksLikeImage(file: string): boolean {
  try {
    const fd = fs.openSync(file, 'r');
    try {
      const head = Buffer.alloc(PROBE_BYTES);
      const length = fs.readSync(fd, head, 0, PROBE_BYTES, 0);
      return formatNameOf(head.subarray(0, length)) !== 'raw';
    } finally {
      fs.closeSync(fd);
    }
  } catch {
    return true;
  }
}

function withFormat(file: string, format: string | undefined): ImageSource {
  return format === undefined ? { path: file } : { path: file, format };
}
