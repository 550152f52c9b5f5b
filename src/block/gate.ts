/**
 * Which files an image may name. An image is untrusted input: without this gate it could present any file of the host that
 * its opener can read, say `/etc/shadow`, as a disk. A raw file shows its bytes as they are, so a *raw* backing file or data
 * file must lie in the image's own directory (or below it) unless the user says `--backing any`. Other formats show nothing
 * that is not an image.
 */
import * as fs from 'node:fs';
import { BlockError, hostError } from '../errors';
import type { OpenedFile } from '../storage/file';

export type BackingGate = 'directory' | 'any';

/** What an image names another file for. */
export type NamedFile = 'backing file' | 'data file';

/**
 * `nbd:...`, `json:...`: as in QEMU, a colon before the first slash ends the name of a protocol, and makes it no path.
 * @returns the name with its colon
 */
export function protocolOf(name: string): string | undefined {
  return /^[^/:]*:/.exec(name)?.[0];
}

/**
 * Path of the file that `imagePath` names; relative names count from the image's directory.
 * Throws UNSUPPORTED_FEATURE for `json:` and protocol names; `file:NAME` is a path.
 */
export function resolveFileName(what: NamedFile, imagePath: string, name: string): string {
  const plain = name.startsWith('file:') ? name.slice('file:'.length) : name;
  const protocol = protocolOf(plain);
  if (protocol !== undefined) {
    throw new BlockError(
      'UNSUPPORTED_FEATURE',
      `Cannot open the ${what} "${name}" of "${imagePath}": "${protocol}" names are not supported, only files`,
      { path: imagePath },
    );
  }
  if (plain.startsWith('/')) return plain;
  return imagePath.slice(0, imagePath.lastIndexOf('/') + 1) + plain;
}

/** An image that names files. */
export interface NamingImage {
  path: string;
  /** Where it really lies, ending in a slash. Bytes: two names that are no UTF-8 may look the same as text. */
  directory: Buffer;
}

export function namingImage(image: OpenedFile): NamingImage {
  const real = realPathOf(image);
  return { path: image.path, directory: real.subarray(0, real.lastIndexOf('/') + 1) };
}

/**
 * Throws DENIED when a raw backing file or data file lies outside the directory of the image that names it. Judged by open
 * descriptors: names and symbolic links may have been changed since they were followed.
 */
export function checkRawFile(what: NamedFile, image: NamingImage, file: OpenedFile, gate: BackingGate): void {
  if (gate === 'any') return;
  if (realPathOf(file).subarray(0, image.directory.length).equals(image.directory)) return;
  throw new BlockError(
    'DENIED',
    `Cannot open the raw ${what} "${file.path}" of "${image.path}": it is outside the image's directory; allow it with --backing any`,
    { path: file.path },
  );
}

/** The kernel's own name of an open file, symbolic links resolved. */
function realPathOf(file: OpenedFile): Buffer {
  try {
    return fs.readlinkSync(`/proc/self/fd/${file.fd}`, 'buffer');
  } catch (error) {
    throw hostError(error, `Cannot tell where "${file.path}" lies`, { path: file.path });
  }
}
