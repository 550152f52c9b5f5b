/**
 * Names of folders in a mount. Image names and layer names come from users and from image files, so a name may hold anything; a folder
 * name must not hold `/` or NUL, be `.` or `..` or exceed 255 bytes, and should not hold control bytes that a terminal obeys.
 */

/** Bytes of UTF-8 that Linux allows in one name (NAME_MAX). */
export const NAME_MAX_BYTES = 255;

/** `text` cut to at most `maxBytes` bytes of UTF-8, never inside a character. */
export function cutToBytes(text: string, maxBytes: number): string {
  if (Buffer.byteLength(text) <= maxBytes) return text;
  let bytes = 0;
  let end = 0;
  for (const character of text) {
    bytes += Buffer.byteLength(character);
    if (bytes > maxBytes) break;
    end += character.length;
  }
  return text.slice(0, end);
}

/**
 * `raw` as one path component: `/` and control characters become `_`, `.` and `..` become `_` and `__`, the empty name becomes
 * `fallback`. Half surrogate pairs become U+FFFD here, because they would on their way to the kernel, where two names could then be one.
 */
export function safeName(raw: string, fallback: string): string {
  const printable = Buffer.from(raw)
    .toString()
    .replace(/[/\p{Cc}]/gu, '_');
  if (printable === '') return fallback;
  if (printable === '.' || printable === '..') return '_'.repeat(printable.length);
  return cutToBytes(printable, NAME_MAX_BYTES);
}

/** Gives each name once; a name that was given before gets `~2`, `~3`, ... appended. */
export class UniqueNames {
  private readonly taken = new Set<string>();
  /** Where to go on counting for a name, so that many equal names do not cost a search each. */
  private readonly next = new Map<string, number>();

  take(name: string): string {
    let number = this.next.get(name) ?? 1;
    let candidate = number === 1 ? name : numbered(name, number);
    while (this.taken.has(candidate)) {
      number += 1;
      candidate = numbered(name, number);
    }
    this.next.set(name, number + 1);
    this.taken.add(candidate);
    return candidate;
  }
}

function numbered(name: string, number: number): string {
  const suffix = `~${number}`;
  return cutToBytes(name, NAME_MAX_BYTES - suffix.length) + suffix;
}
