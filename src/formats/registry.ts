/** The formats. A new one is a folder and a line here. */
import { BlockError } from '../errors';
import type { Storage } from '../storage/storage';
import { foreignFormatOf } from './foreign';
import type { FormatModule } from './format';
import { qcowFormat } from './qcow/format';
import { qcow2Format } from './qcow2/format';
import { qedFormat } from './qed/format';
import { rawFormat } from './raw/format';

export const FORMATS: readonly FormatModule[] = [qcowFormat, qcow2Format, qedFormat, rawFormat];

/** Bytes that probing looks at. */
export const PROBE_BYTES = 512;

export function formatNames(): string[] {
  return FORMATS.map((format) => format.name);
}

/** @param name the word of qemu-img, e.g. `qed` */
export function formatByName(name: string): FormatModule {
  const format = FORMATS.find((candidate) => candidate.name === name);
  if (format === undefined) {
    throw new BlockError(
      'UNSUPPORTED_FEATURE',
      `Unknown driver '${name}': the formats are ${formatNames().join(', ')}`,
    );
  }
  return format;
}

/**
 * Guesses the format from the first bytes; what looks like nothing else is raw. Untrusted: see the gate in `block/`. What looks like
 * a format that we do not have is refused: as raw it would show, and let be overwritten, tables and not a disk.
 */
export function probeFormat(storage: Storage): FormatModule {
  const head = new Uint8Array(PROBE_BYTES);
  const got = storage.read(0, head, 0, PROBE_BYTES);
  const name = formatNameOf(head.subarray(0, got));
  const found = FORMATS.find((format) => format.name === name);
  if (found !== undefined) return found;
  throw new BlockError(
    'UNSUPPORTED_FEATURE',
    `Cannot open "${storage.path}": it looks like ${name}, which is not supported; to see its bytes say that its format is raw`,
    { path: storage.path },
  );
}

/**
 * What QEMU, too, would take the file for: one of `FORMATS`, or one that we do not have.
 * @param head the first bytes of a file, at most PROBE_BYTES count
 */
export function formatNameOf(head: Uint8Array): string {
  return FORMATS.find((format) => format.probe(head))?.name ?? foreignFormatOf(head) ?? rawFormat.name;
}
