/** English beside Chinese. Keys begin with the name of the file and a dot. */
export type Dictionary = Record<string, readonly [english: string, chinese: string]>;

export function dictionary<const D extends Dictionary>(texts: D): D {
  return texts;
}
