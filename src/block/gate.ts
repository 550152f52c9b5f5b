/**
 * Which files an image may name. An image is untrusted input: without this gate it could present any file of the host that
 * its opener can read, say `/etc/shadow`, as a disk. A raw file shows its bytes as they are, so a *raw* backing file must
 * lie in the image's own directory (or below it) unless the user says `--backing any`. Other formats show nothing that is
 * not an image.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BlockError, hostError } from '../errors';

export type BackingGate = 'directory' | 'any';

/** What an image names another file for. */
export type NamedFile = 'backing file' | 'data file';

/** QEMU accepts `file:NAME`; any other prefix of letters names a protocol, which we do not have. */
const PROTOCOL = /^[a-z][a-z0-9+.-]*:/i;

/**
 * Path of the file that `imagePath` names; relative names count from the image's directory.
 * Throws UNSUPPORTED_FEATURE for `json:` and protocol names.
 */
export function resolveFileName(what: NamedFile, imagePath: string, name: string): string {
  const plain = name.startsWith('file:') ? name.slice('file:'.length) : name;
  const protocol = PROTOCOL.exec(plain);
  // As QEMU: a slash before the colon means that it is a path.
  if (protocol !== null && !plain.slice(0, plain.indexOf(':')).includes('/')) {
    throw new BlockError(
      'UNSUPPORTED_FEATURE',
      `Cannot open the ${what} "${name}" of "${imagePath}": "${protocol[0]}" names are not supported, only files`,
      { path: imagePath },
    );
  }
  if (path.isAbsolute(plain)) return plain;
  return imagePath.slice(0, imagePath.lastIndexOf('/') + 1) + plain;
}

export interface OpenedFile {
  fd: number;
  /** As it was named, for messages. */
  path: string;
}

/**
 * Throws DENIED when a raw backing file or data file lies outside the directory of the image that names it. Judged by the open
 * descriptors: names and symbolic links may have been changed since they were followed.
 */
export function checkRawFile(what: NamedFile, image: OpenedFile, file: OpenedFile, gate: BackingGate): void {
  if (gate === 'any') return;
  const directory = path.dirname(realPathOf(image));
  const real = realPathOf(file);
  if (real.startsWith(directory === '/' ? '/' : `${directory}/`)) return;
  throw new BlockError(
    'DENIED',
    `Cannot open the raw ${what} "${file.path}" of "${image.path}": it is outside the image's directory; allow it with --backing any`,
    { path: file.path },
  );
}

function realPathOf(file: OpenedFile): string {
  try {
    return fs.readlinkSync(`/proc/self/fd/${file.fd}`);
  } catch (error) {
    throw hostError(error, `Cannot tell where "${file.path}" lies`, { path: file.path });
  }
}
